-- Publish the next piece of an answer while the caller still holds the entry.
--   offset: of the piece in the answer, in characters
-- Returns OK | FENCED | STALE. Followers recognize a repeat by its offset.
-- include: clock state entry trace turn
-- args: offset piece
local verdict = guard()
if verdict == 'OK' then event(TURN, 'delta', 'p', OFFSET, 'x', PIECE) end
return verdict
