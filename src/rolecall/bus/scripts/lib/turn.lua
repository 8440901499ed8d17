-- Prelude of the scripts that act on one turn; follows clock, state, entry and trace. STREAM and ENTRY say where the
-- caller expects the turn's entry.
--   name: the conversation's id
--   channel: wakes the followers of the conversation
-- keys: conversation journal events preferences
-- args: name turn channel
local CONTROL, CALL = is_control(TURN), is_call(TURN)
local ORDERED = not CONTROL and not CALL
local running, at, session, rested, known_title, newest, told =
  unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at', 'session', 'last', 'title', 'seq', 'told'))
if CALL then
  at = redis.call('HGET', JOURNAL, TURN .. ':a')
  running = at and TURN
end

-- OK, FENCED (another process holds the entry), or STALE (the turn has ended or is elsewhere). A stale entry is dropped;
-- nothing else is written.
local function guard()
  if not deliveries() then return 'FENCED' end
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
  if CALL then redis.call('HSET', JOURNAL, TURN .. ':a', to)
  elseif ORDERED then redis.call('HSET', CONVERSATION, 'at', to) end
end

-- Append an event. The stream keeps its time to live, which admission, a long wait and the end of the last turn set.
local function event(turn, kind, ...) return tell(EVENTS, CHANNEL, turn, kind, ...) end

-- Add one log record, `ago` ms old. `since` is when the turn was received; without it, the journal says so.
local function record(turn, ago, instance, word, text, since)
  local ms = NOW - tonumber(ago)
  local received = tonumber(since or redis.call('HGET', JOURNAL, turn .. ':r') or ms)
  log_record(NAME, session, turn, received, ms, instance, word, text)
end

-- When the turn was received: `given` by the caller, '0' if it does not know.
local function received_at(given)
  return given ~= '0' and given or redis.call('HGET', JOURNAL, TURN .. ':r') or NOW
end

-- Add the caller's log records: a flat list of ms ago, instance, word, text. `since` is when the turn was received.
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

