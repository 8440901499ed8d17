-- Settle an entry by sending the turn on: the next envelope is written and this one is gone, in one step.
-- Returns OK | FENCED | STALE. After a lost reply the repeat says FENCED: it had happened.
-- include: state turn
-- keys: destination alive fallback
-- args: envelope hop role changes* records*
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
local stream = DESTINATION
if ALIVE ~= stream and redis.call('EXISTS', ALIVE) == 0 then stream = FALLBACK end
local id = redis.call('XADD', stream, '*', 'c', NAME, 't', TURN, 'h', HOP, 'e', ENVELOPE)
moved(stream .. '|' .. id)
change(CHANGES)
records(RECORDS)
return 'OK'
