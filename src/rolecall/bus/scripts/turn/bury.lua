-- Give an entry up: dead letter, one apology to the user, and the next turn runs, in one step.
-- KEYS lib/guard, lib/finish, 18 dead letters
-- ARGV lib/guard, lib/finish, 9 final event as JSON · 10 reason · 11 delivery count · 12 raw envelope · 13 hop,
--      then history, records
-- Returns OK | FENCED | STALE. After a lost reply the repeat says FENCED: it had happened.
-- include: guard finish
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
redis.call('XADD', KEYS[18], 'MAXLEN', '~', 1000, '*', 'c', NAME, 't', TURN, 'h', ARGV[13], 'e', ARGV[12],
  'why', ARGV[10], 'n', ARGV[11], 's', SRC, 'ms', NOW)
records(remember(14))
finish(TURN, KEYS[17], 'error', ARGV[9])
if not CONTROL then release() end
return 'OK'
