-- Settle an entry by completing its turn: reply, history, preferences, log, and the release of the next turn.
--   final: the final event as JSON; forget: '1' clears the history and makes the next message begin a session
--   received: when the turn was received, 0 if unknown
-- Returns {OK|FENCED|STALE, what `take` in lib/take.lua returns}. A repeat after a lost reply is FENCED.
-- include: clock state entry trace turn sleep finish take
-- args: final received forget remembered* changes* records*
local verdict = guard()
if verdict ~= 'OK' then return { verdict, {} } end
drop()
remember(REMEMBERED)
change(CHANGES)
records(RECORDS, received_at(RECEIVED))
if FORGET == '1' then forget() end
finish(TURN, RESULT, 'final', FINAL)
if ORDERED then release() end
local taken = take()
flush()
return { 'OK', taken }
