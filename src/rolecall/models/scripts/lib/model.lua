-- Prelude of the scripts that guard the use of one model by all processes.
--   use: by slices of the minute; booked: places in the quota; busy: calls in flight; waiting: conversations that wait
--   room: most calls at once, 0 for no limit
-- State: open (1 while the model is taken to be away), until (nobody asks before), opens (how often in a row it was
-- found away), fails, probe (the one call that asks while it is away), look (when the last of those who wait looks
-- again), scale (tokens used per token expected), why.
-- keys: state use booked busy waiting
-- args: call room
ROOM = tonumber(ROOM)
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function get(name) return tonumber(redis.call('HGET', STATE, name) or 0) end

local function in_flight()
  redis.call('ZREMRANGEBYSCORE', BUSY, '-inf', NOW)
  return redis.call('ZCARD', BUSY)
end

local function probing()
  local probe = redis.call('HGET', STATE, 'probe')
  return probe and redis.call('ZSCORE', BUSY, probe)
end

-- Ms until the caller should look again: one after the other, so that they never come all at once, and the next one
-- is there soon after the model may be asked.
local function next_look(apart)
  local at = math.max(get('until'), get('look') + apart)
  redis.call('HSET', STATE, 'look', at)
  return at - NOW
end

-- Conversations to wake now: as many as there is room for; of an unlimited model many when it has just come back.
local function woken(returned)
  if get('open') == 1 or NOW < get('until') then return {} end
  local room = ROOM > 0 and ROOM - in_flight() or (returned and 32 or 2)
  if room <= 0 then return {} end
  local names, flat = {}, redis.call('ZPOPMIN', WAITING, room)
  for i = 1, #flat, 2 do names[#names + 1] = flat[i] end
  return names
end

-- The model has answered: it is not away. Returns whether it was.
local function answered()
  local was = get('open') == 1
  redis.call('HDEL', STATE, 'open', 'opens', 'fails', 'probe', 'look', 'why')
  if was then redis.call('HDEL', STATE, 'until') end
  return was
end
