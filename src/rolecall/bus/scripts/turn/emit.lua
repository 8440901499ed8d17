-- Publish the next piece of an answer in the making, while the caller still holds the entry.
-- KEYS lib/guard  ARGV lib/guard, 6 offset of the piece in the answer, in characters · 7 the piece
-- Returns OK | FENCED | STALE. A repeat is seen by its offset.
-- include: guard
local verdict = guard()
if verdict == 'OK' then event(TURN, 'delta', 'p', ARGV[6], 'x', ARGV[7]) end
return verdict
