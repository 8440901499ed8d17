-- Prelude: turns that sleep; follows clock, state and trace. The script declares ACTIVE, CONVERSATION, DEFERRED, JOURNAL
-- and NAME; settle_step also needs STEPS_STEM. Of a turn that sleeps, the journal has these fields: `s` the stream where it
-- continues, `h` its hop, `e` its envelope unless it is held, `q` how quietly it starts again; of a suspended one also
-- `w`, the steps it waits for, `t` the same for people, `n` when it began to wait, `d` until when at most, and `p`, until
-- when its time stands still.
local QUIETLY, RESUMED = '1', '2'
-- The suspended turns by when they began to wait: what people look at.
local SUSPENDED = DEFERRED .. ':w'

local function slept(turn, field) return (is_call(turn) and turn .. ':' or '') .. 'defer:' .. field end

-- Add `ms` to the time that the turn may take, and its callers with it.
local function extend(turn, ms)
  while turn do
    local name = member(NAME, turn)
    local since = redis.call('ZSCORE', ACTIVE, name)
    if since then redis.call('ZADD', ACTIVE, since + ms, name) end
    redis.call('HINCRBY', JOURNAL, turn .. ':p', ms)
    turn = caller_of(turn)
  end
end

local function put_at(turn, to)
  if is_call(turn) then redis.call('HSET', JOURNAL, turn .. ':a', to)
  else redis.call('HSET', CONVERSATION, 'at', to) end
end

-- Clear what is kept of a turn that sleeps no more. Time that it would still have stood still is taken back.
local function rouse(turn)
  redis.call('ZREM', DEFERRED, member(NAME, turn))
  redis.call('ZREM', SUSPENDED, member(NAME, turn))
  local stands_still = tonumber(redis.call('HGET', JOURNAL, slept(turn, 'p')) or 0)
  if stands_still > NOW then extend(turn, NOW - stands_still) end
  redis.call('HDEL', JOURNAL, slept(turn, 's'), slept(turn, 'h'), slept(turn, 'e'), slept(turn, 'q'), slept(turn, 'w'),
    slept(turn, 't'), slept(turn, 'n'), slept(turn, 'd'), slept(turn, 'p'))
end

-- Write the entry of a turn that sleeps: it continues, as of `now` for its timers. A turn that was held begins with all
-- its parts.
local function wake(turn, now)
  local stream, hop, later, quiet =
    unpack(redis.call('HMGET', JOURNAL, slept(turn, 's'), slept(turn, 'h'), slept(turn, 'e'), slept(turn, 'q')))
  rouse(turn)
  local first, joined, stepped, paused =
    unpack(redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':s', turn .. ':p'))
  local envelope = later or first
  local fields = { 'c', NAME, 't', turn, 'h', hop, 'e', envelope, 'x', envelope == first and joined or '' }
  local function add(name, value)
    if value then fields[#fields + 1], fields[#fields + 2] = name, value end
  end
  add('q', quiet)
  add('s', stepped)
  add('p', paused)
  add('w', quiet == RESUMED and now)
  put_at(turn, place(stream, redis.call('XADD', stream, '*', unpack(fields))))
end

-- Whether a group of steps, their keys with blanks between them, is finished.
local function finished(steps, group)
  for key in string.gmatch(group, '%S+') do
    if redis.call('HEXISTS', steps, '=' .. key) == 0 then return false end
  end
  return true
end

-- Write the result of a step that `turn` waits for or will wait for, once, and resume the turn if it was the last
-- missing one of a group. A result over `limit` bytes, with all other steps, becomes a failure. `call` is the turn that
-- brings it, if one does; of one that an earlier hop has made, nothing is written.
local function settle_step(turn, key, result, limit, call)
  local steps = STEPS_STEM .. turn
  local begun, done, awaited = unpack(redis.call('HMGET', steps, key, '=' .. key, 'c' .. key))
  if not begun or done or (call and call ~= awaited) then return end
  if redis.call('HINCRBY', steps, 'b', #result) > tonumber(limit) then
    redis.call('HINCRBY', steps, 'b', -#result)
    result = '{"kind":"error","text":"","reason":"its answer exceeds what is left of STEPS_KB"}'
  end
  redis.call('HSET', steps, '=' .. key, result)
  local waits = redis.call('HGET', JOURNAL, slept(turn, 'w'))
  for group in string.gmatch(waits or '', '[^;]+') do
    if string.find(' ' .. group .. ' ', ' ' .. key .. ' ', 1, true) and finished(steps, group) then
      return wake(turn, NOW)
    end
  end
end

