-- Accept a user's message: it runs, waits, joins a turn that has not begun, or is refused. A refusal writes nothing.
-- Returns {RUN|WAIT|MERGED|DUP|CONFLICT|FULL|BUSY, turn, place, server ms, id of the turn's first event or ''}.
-- A repeat with the same key and body is DUP and changes nothing. FULL with a turn: that turn takes no more parts.
-- Confirmed by replicas.
-- include: clock state entry trace turn sleep finish admit
local answer = known()
if answer then return answer end
local turn = host()
if turn then return join(turn) end
return refused(0) or accept()
