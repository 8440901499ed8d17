-- Prelude: how the state of a turn is written. A conversation's field `cur` names its running turn; `at` is the place of
-- that turn's one entry, `<stream>|<entry id>`, or SLEEPING while the turn is held, deferred or suspended.
local SLEEPING = 'z'

-- The group of a command: no message joins its turn.
local ALONE = '/'

local function place(stream, entry) return stream .. '|' .. entry end

-- Control turns run outside their conversation's order.
local function is_control(turn) return string.sub(turn, 1, 1) == 'c' end

-- A call is the turn that a handler has made for another role, `<turn of the handler>.<number>`. It runs outside the
-- order, too; its place is the field `<turn>:a` of the journal.
local function is_call(turn) return string.find(turn, '.', 1, true) ~= nil end

-- The turn whose handler made a call, or nil.
local function caller_of(turn) return string.match(turn, '^(.*)%.%d+$') end

-- What a turn is called in the sets of a shard.
local function member(conversation, turn)
  return (is_call(turn) or is_control(turn)) and conversation .. '\31' .. turn or conversation
end

