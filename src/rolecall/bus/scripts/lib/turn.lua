-- Prelude of the scripts that act on one turn; follows clock, state and entry. STREAM and ENTRY say where the caller
-- expects the turn's entry.
--   name: the conversation's id
--   channel: wakes the followers of the conversation
-- keys: conversation journal events log preferences
-- args: name turn channel
local CONTROL = is_control(TURN)
local running, at, session = unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at', 'session'))

-- OK, FENCED (another process holds the entry), or STALE (the turn has ended or is elsewhere). A stale entry is dropped;
-- nothing else is written.
local function guard()
  if not own() then return 'FENCED' end
  if CONTROL then
    if redis.call('HEXISTS', JOURNAL, TURN .. ':e') == 1 then return 'OK' end
  elseif running == TURN and at == place(STREAM, ENTRY) then
    return 'OK'
  end
  drop()
  return 'STALE'
end

-- Whether the running turn is held back and has not begun. A deferred turn has its envelope in the journal instead.
local function held()
  return at == SLEEPING and redis.call('HEXISTS', JOURNAL, 'defer:e') == 0
end

local function moved(to)
  if not CONTROL then redis.call('HSET', CONVERSATION, 'at', to) end
end

local function event(turn, kind, ...)
  local id = redis.call('XADD', EVENTS, 'MAXLEN', '~', 4000, '*', 't', turn, 'k', kind, ...)
  redis.call('EXPIRE', EVENTS, 3600)
  redis.call('PUBLISH', CHANNEL, kind)
  return id
end

-- Write one log record, `ago` ms old. `since` is when the turn was received; without it, the journal says so.
local function record(turn, ago, instance, word, text, since)
  local ms = NOW - tonumber(ago)
  local received = tonumber(since or redis.call('HGET', JOURNAL, turn .. ':r') or ms)
  redis.call('XADD', LOG, 'MAXLEN', '~', 200000, '*', 'c', NAME, 's', session or NOW, 't', turn,
    'ms', ms, 'd', math.max(0, ms - received), 'i', instance, 'w', word, 'x', text)
end

-- Write the caller's log records: a flat list of ms ago, instance, word, text.
local function records(list, since)
  for r = 1, #list, 4 do record(TURN, list[r], list[r + 1], list[r + 2], list[r + 3], since) end
end

-- Change preferences: a flat list of name, value; an empty value removes the preference.
local function change(list)
  for p = 1, #list, 2 do
    if list[p + 1] == '' then redis.call('HDEL', PREFERENCES, list[p])
    else redis.call('HSET', PREFERENCES, list[p], list[p + 1]) end
  end
end

