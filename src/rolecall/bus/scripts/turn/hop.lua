-- Settle an entry by sending its turn on: the next entry is written and this one is dropped, in one step.
--   alive: sign of life of the process that owns `destination`, or `destination` again for a role's stream
--   fallback: used when that process is gone
--   received: when the turn was received, 0 if unknown
-- Returns {OK|FENCED|STALE, what `take` in lib/take.lua returns}. A repeat after a lost reply is FENCED.
-- include: clock state entry trace turn take
-- keys: destination alive fallback
-- args: envelope hop received changes* records*
local verdict = guard()
if verdict ~= 'OK' then return { verdict, {} } end
drop()
local stream = DESTINATION
if ALIVE ~= stream and redis.call('EXISTS', ALIVE) == 0 then stream = FALLBACK end
local since = received_at(RECEIVED)
local id = redis.call('XADD', stream, '*', 'c', NAME, 't', TURN, 'h', HOP, 'e', ENVELOPE, 'r', since)
moved(place(stream, id))
change(CHANGES)
records(RECORDS, since)
local taken = take()
flush()
return { 'OK', taken }
