-- Settle an entry by ending its turn: answer, history, log and the release of the next turn, in one step.
-- KEYS lib/guard, lib/finish
-- ARGV lib/guard, lib/finish, 9 final event as JSON · 10 tokens in · 11 tokens out · 12 '1' forgets the history and
--      lets the next message begin a new session,
--      then history, preferences, records
-- Returns OK | FENCED | STALE. After a lost reply the repeat says FENCED: it had happened.
-- include: guard finish
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
local user = redis.call('HGET', JOURNAL, TURN .. ':u') or ''
if ARGV[10] ~= '0' then count(user, 'in', ARGV[10]) end
if ARGV[11] ~= '0' then count(user, 'out', ARGV[11]) end
records(preferences(remember(13)))
if ARGV[12] == '1' then
  redis.call('DEL', HISTORY)
  redis.call('HDEL', CONV, 'last')
end
finish(TURN, KEYS[17], 'final', ARGV[9])
if not CONTROL then release() end
return 'OK'
