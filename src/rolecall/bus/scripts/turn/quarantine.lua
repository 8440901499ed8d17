-- Make a dead letter of an entry that belongs to no turn. Whatever it claims, it affects no conversation.
--   fields: the entry's fields as JSON
-- Returns OK | FENCED.
-- include: clock entry
-- keys: dead
-- args: reason deliveries fields
if not deliveries() then return 'FENCED' end
drop()
redis.call('XADD', DEAD, 'MAXLEN', '~', 1000, '*', 'c', '', 't', '', 'h', 0, 'e', FIELDS,
  'why', REASON, 'n', DELIVERIES, 's', STREAM, 'ms', NOW)
return 'OK'
