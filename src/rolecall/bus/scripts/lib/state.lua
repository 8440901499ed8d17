-- Prelude: how the state of a turn is written. A conversation's field `cur` names its running turn; `at` is the place of
-- that turn's one entry, `<stream>|<entry id>`, or SLEEPING while the turn is held, deferred or suspended.
--
-- The journal of a conversation has these fields of each unfinished turn: `<turn>:e` envelope, `:x` the messages that
-- joined it, `:b` band, `:u` user, `:o` front end whose outbox gets the answer, `:r` when it was received (ms), `:g` group
-- that may join it, `:d` until when it is held (ms), `:t` schedule that began it, `:s` hop of its recorded steps, `:c`
-- number of its calls, `:p` ms that its time stood still; of a call also `:a` the place of its entry and `:k` the step
-- that it answers. What it has of a turn that sleeps stands in sleep.lua.
--
-- An entry has the fields `c` conversation, `t` turn, `h` hop, `e` envelope, `x` the messages that joined it, `r` when the
-- turn was received, `q` how quietly it begins, `s` whether steps are recorded, `p` ms that the turn's time stood still,
-- and `w` as of when its timers count.
local SLEEPING = 'z'

-- How the group of a command begins: only messages of the rest of it join its turn.
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

