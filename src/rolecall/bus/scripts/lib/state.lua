-- Prelude: how the state of a turn is written. A conversation's field `cur` names its running turn; `at` is the place of
-- that turn's one entry, `<stream>|<entry id>`, or SLEEPING while the turn is held or deferred.
local SLEEPING = 'z'

local function place(stream, entry) return stream .. '|' .. entry end

-- Control turns run outside their conversation's order.
local function is_control(turn) return string.sub(turn, 1, 1) == 'c' end

