-- Accept a user's message: it runs, waits, becomes a part of a turn that has not begun, or is refused; a refusal
-- writes nothing.
-- Returns {RUN|WAIT|MERGED|DUP|CONFLICT|FULL|BUSY, turn, place, server ms, id of the turn's first event or ''}.
-- A repeat of the same key and body is DUP: nothing changes. FULL with a turn: that turn takes no more parts.
-- include: state turn finish admit
local answer = known()
if answer then return answer end
local turn = host()
if turn then return join(turn) end
return refused(0) or accept()
