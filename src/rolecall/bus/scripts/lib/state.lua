-- Prelude: how the state of a turn is written. A conversation's field `at` is where the entry of its running turn is,
-- `<stream>|<entry id>`, or SLEEPING while that turn is held or deferred.
local SLEEPING = 'z'

-- Control turns run outside their conversation's order.
local function is_control(turn) return string.sub(turn, 1, 1) == 'c' end

