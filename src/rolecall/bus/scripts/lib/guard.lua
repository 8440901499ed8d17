-- Prelude of every script that acts on one turn.
-- KEYS 1 stream of its entry · 2 conversation · 3 journal · 4 events · 5 log · 6 preferences
-- ARGV 1 entry id · 2 process · 3 conversation's name · 4 turn · 5 wake-up channel
local SRC, CONV, JOURNAL, EVENTS, LOG, PREFS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local ID, WHO, NAME, TURN, CHANNEL = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
local CONTROL = string.sub(TURN, 1, 1) == 'c'
local state = redis.call('HMGET', CONV, 'cur', 'at', 'session')

local function own()
  local row = redis.pcall('XPENDING', SRC, 'g', ID, ID, 1, WHO)
  return not row.err and #row == 1
end

local function drop()
  redis.call('XACK', SRC, 'g', ID)
  redis.call('XDEL', SRC, ID)
end

-- OK · FENCED: the entry is another's · STALE: the turn is over or elsewhere; the entry is dropped, nothing else.
local function guard()
  if not own() then return 'FENCED' end
  if CONTROL then
    if redis.call('HEXISTS', JOURNAL, TURN .. ':e') == 1 then return 'OK' end
  elseif state[1] == TURN and state[2] == SRC .. '|' .. ID then
    return 'OK'
  end
  drop()
  return 'STALE'
end

-- Whether the running turn has not begun: it sleeps out its hold. One that was deferred brings its envelope along.
local function held()
  return state[2] == 'z' and redis.call('HEXISTS', JOURNAL, 'defer:e') == 0
end

local function moved(at)
  if not CONTROL then redis.call('HSET', CONV, 'at', at) end
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

-- ARGV from `i`: n, then n × (ms ago, instance, word, text). Returns the index behind them.
local function records(i, begun)
  local last = i + tonumber(ARGV[i]) * 4
  for r = i + 1, last, 4 do record(TURN, ARGV[r], ARGV[r + 1], ARGV[r + 2], ARGV[r + 3], begun) end
  return last + 1
end

-- ARGV from `i`: n, then n × (name, value); an empty value removes. Returns the index behind them.
local function preferences(i)
  local last = i + tonumber(ARGV[i]) * 2
  for p = i + 1, last, 2 do
    if ARGV[p + 1] == '' then redis.call('HDEL', PREFS, ARGV[p])
    else redis.call('HSET', PREFS, ARGV[p], ARGV[p + 1]) end
  end
  return last + 1
end
