-- Prelude of every script that acts on one turn.
--   stream, entry: the turn's entry, as the caller knows it; process: the caller
--   name: the conversation's name; channel: where its followers are woken
-- keys: stream conversation journal events log preferences
-- args: entry process name turn channel
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
local CONTROL = is_control(TURN)
local state = redis.call('HMGET', CONVERSATION, 'cur', 'at', 'session')

local function own()
  local row = redis.pcall('XPENDING', STREAM, 'g', ENTRY, ENTRY, 1, PROCESS)
  return not row.err and #row == 1
end

local function drop()
  redis.call('XACK', STREAM, 'g', ENTRY)
  redis.call('XDEL', STREAM, ENTRY)
end

-- OK · FENCED: the entry is another's · STALE: the turn is over or elsewhere; the entry is dropped, nothing else.
local function guard()
  if not own() then return 'FENCED' end
  if CONTROL then
    if redis.call('HEXISTS', JOURNAL, TURN .. ':e') == 1 then return 'OK' end
  elseif state[1] == TURN and state[2] == STREAM .. '|' .. ENTRY then
    return 'OK'
  end
  drop()
  return 'STALE'
end

-- Whether the running turn has not begun: it sleeps out its hold. One that was deferred brings its envelope along.
local function held()
  return state[2] == SLEEPING and redis.call('HEXISTS', JOURNAL, 'defer:e') == 0
end

local function moved(at)
  if not CONTROL then redis.call('HSET', CONVERSATION, 'at', at) end
end

local function event(turn, kind, ...)
  local id = redis.call('XADD', EVENTS, 'MAXLEN', '~', 4000, '*', 't', turn, 'k', kind, ...)
  redis.call('EXPIRE', EVENTS, 3600)
  redis.call('PUBLISH', CHANNEL, kind)
  return id
end

-- `begun` is when the turn was received, where the caller knows: its journal may be gone.
local function record(turn, ago, instance, word, text, begun)
  local ms = NOW - tonumber(ago)
  local received = tonumber(begun or redis.call('HGET', JOURNAL, turn .. ':r') or ms)
  redis.call('XADD', LOG, 'MAXLEN', '~', 200000, '*', 'c', NAME, 's', state[3] or NOW, 't', turn,
    'ms', ms, 'd', math.max(0, ms - received), 'i', instance, 'w', word, 'x', text)
end

-- Write the caller's log records: a flat list of ms ago, instance, word, text.
local function records(list, begun)
  for r = 1, #list, 4 do record(TURN, list[r], list[r + 1], list[r + 2], list[r + 3], begun) end
end

-- Change preferences: a flat list of name, value; an empty value removes.
local function change(list)
  for p = 1, #list, 2 do
    if list[p + 1] == '' then redis.call('HDEL', PREFERENCES, list[p])
    else redis.call('HSET', PREFERENCES, list[p], list[p + 1]) end
  end
end
