-- Give an entry up: dead letter, one apology to the user, and the next turn runs, in one step.
-- Returns OK | FENCED | STALE. After a lost reply the repeat says FENCED: it had happened.
-- include: state turn finish
-- keys: dead
-- args: final reason deliveries envelope hop remembered* records*
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
redis.call('XADD', DEAD, 'MAXLEN', '~', 1000, '*', 'c', NAME, 't', TURN, 'h', HOP, 'e', ENVELOPE,
  'why', REASON, 'n', DELIVERIES, 's', STREAM, 'ms', NOW)
remember(REMEMBERED)
records(RECORDS)
finish(TURN, RESULT, 'error', FINAL)
if not CONTROL then release() end
return 'OK'
