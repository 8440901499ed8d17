-- Settle an entry by sending the turn on: the next envelope is written and this one is gone, in one step.
-- KEYS lib/guard, 7 destination · 8 sign of life of the process addressed, or 7 again · 9 fallback destination
-- ARGV lib/guard, 6 envelope · 7 hop · 8 role of the destination, then preferences, then records
-- Returns OK | FENCED | STALE. After a lost reply the repeat says FENCED: it had happened.
-- include: guard
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
local stream = KEYS[7]
if KEYS[8] ~= stream and redis.call('EXISTS', KEYS[8]) == 0 then stream = KEYS[9] end
local id = redis.call('XADD', stream, '*', 'c', NAME, 't', TURN, 'h', ARGV[7], 'e', ARGV[6])
moved(stream .. '|' .. id)
records(preferences(9))
return 'OK'
