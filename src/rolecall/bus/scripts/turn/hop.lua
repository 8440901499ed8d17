-- Settle an entry by sending its turn on: the next entry is written and this one is dropped, in one step.
--   alive: sign of life of the process that owns `destination`, or `destination` again for a role's stream
--   fallback: used when that process is gone
-- Returns OK | FENCED | STALE. A repeat after a lost reply is FENCED.
-- include: clock state entry turn
-- keys: destination alive fallback
-- args: envelope hop changes* records*
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
local stream = DESTINATION
if ALIVE ~= stream and redis.call('EXISTS', ALIVE) == 0 then stream = FALLBACK end
local id = redis.call('XADD', stream, '*', 'c', NAME, 't', TURN, 'h', HOP, 'e', ENVELOPE)
moved(place(stream, id))
change(CHANGES)
records(RECORDS)
return 'OK'
