-- Publish the next piece of an answer in the making, while the caller still holds the entry.
-- Returns OK | FENCED | STALE. A repeat is seen by its offset.
-- include: state turn
-- args: offset piece
local verdict = guard()
if verdict == 'OK' then event(TURN, 'delta', 'p', OFFSET, 'x', PIECE) end
return verdict
