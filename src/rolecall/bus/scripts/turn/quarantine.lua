-- Put an entry that belongs to no turn aside. It has no effect on any conversation, whatever it claims.
-- Returns OK | FENCED.
-- keys: stream dead
-- args: entry process reason deliveries fields
local row = redis.pcall('XPENDING', STREAM, 'g', ENTRY, ENTRY, 1, PROCESS)
if row.err or #row == 0 then return 'FENCED' end
redis.call('XACK', STREAM, 'g', ENTRY)
redis.call('XDEL', STREAM, ENTRY)
local clock = redis.call('TIME')
redis.call('XADD', DEAD, 'MAXLEN', '~', 1000, '*', 'c', '', 't', '', 'h', 0, 'e', FIELDS,
  'why', REASON, 'n', DELIVERIES, 's', STREAM, 'ms', clock[1] * 1000 + math.floor(clock[2] / 1000))
return 'OK'
