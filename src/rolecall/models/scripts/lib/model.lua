-- Prelude of the scripts that share one model among all processes: circuit breaker, quota and concurrency; follows clock.
--   state: `open` (1 while the breaker is open), `since` (ms; when it opened), `until` (ms; no calls before), `opens` (openings
--     in a row), `fails` (failures in a row), `probe` (the one call allowed while open), `look` (ms; last time given out by next_look),
--     `scale` (tokens used per token expected), `why`, `seen` (ms; when the model was last used), `booked` (the last booked slice)
--   use: tokens and requests by slice of the minute; booked: slice by turn
--   busy: calls in flight by deadline; waiting: conversations whose turn sleeps until the model has room
--   room: maximum of concurrent calls, 0 for no limit
-- keys: state use booked busy waiting
-- args: call room
ROOM = tonumber(ROOM)

local state = {}
local flat_state = redis.call('HGETALL', STATE)
for i = 1, #flat_state, 2 do state[flat_state[i]] = flat_state[i + 1] end

local function get(name) return tonumber(state[name] or 0) end

local function put(name, value)
  state[name] = value
  redis.call('HSET', STATE, name, value)
end

-- Remove fields of the state, those that are there.
local function clear(...)
  local gone = {}
  for _, name in ipairs({ ... }) do
    if state[name] then gone[#gone + 1], state[name] = name, nil end
  end
  if #gone > 0 then redis.call('HDEL', STATE, unpack(gone)) end
end

-- When the clock stepped back, whatever was set until some time would last as much longer.
local seen = get('seen')
local a_second_later = NOW > seen + 1000
if NOW < seen - 2000 then
  clear('until', 'since', 'look', 'probe', 'seen', 'booked')
  redis.call('DEL', BUSY, USE, BOOKED)
elseif a_second_later then
  put('seen', NOW)
  redis.call('EXPIRE', STATE, 86400)
  redis.call('ZREMRANGEBYSCORE', BUSY, '-inf', NOW)
end

-- Open the breaker until `till` at least.
local function open_until(till, why)
  if not state.since then put('since', NOW) end
  put('open', 1)
  put('until', math.max(till, get('until')))
  put('why', why)
end

-- Ms for which the breaker has been open.
local function silence() return get('open') == 1 and math.max(0, NOW - (get('since') > 0 and get('since') or NOW)) or 0 end

local function in_flight() return redis.call('ZCOUNT', BUSY, '(' .. NOW, '+inf') end

local function probing()
  local until_then = state.probe and redis.call('ZSCORE', BUSY, state.probe)
  return until_then and tonumber(until_then) > NOW
end

-- Ms until the caller should try again. Callers are spread `apart` ms from each other, beginning when the model may be
-- called.
local function next_look(apart)
  local at = math.max(get('until'), get('look') + apart)
  put('look', at)
  return at - NOW
end

-- Conversations to wake now: as many as there is room for; for a model without a limit, more once it has `returned`.
local function woken(returned)
  if get('open') == 1 or NOW < get('until') or redis.call('EXISTS', WAITING) == 0 then return {} end
  local room = ROOM > 0 and ROOM - in_flight() or (returned and 32 or 2)
  if room <= 0 then return {} end
  local names, flat = {}, redis.call('ZPOPMIN', WAITING, room)
  for i = 1, #flat, 2 do names[#names + 1] = flat[i] end
  return names
end

-- Close the breaker, as the model has answered. Returns whether it was open.
local function answered()
  local was = get('open') == 1
  clear('open', 'since', 'opens', 'fails', 'probe', 'look', 'why')
  if was then clear('until') end
  return was
end
