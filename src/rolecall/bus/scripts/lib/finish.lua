-- Prelude of the scripts that end turns and release the next one; follows turn and sleep.
--   statistics: of the day
--   outbox: of the front end that delivers the answer
--   first_high, first_normal, first_low: streams of the first role, by band
--   result: of TURN
--   keep, keep_result: ms that an idle conversation and a result are kept
--   history_limit: number of messages
--   steps_stem: names the journals of steps, without the turn; steps_limit: bytes that each of them may have
-- keys: mailbox active deferred principals history statistics outbox first_high first_normal first_low result
-- args: keep keep_result history_limit steps_stem steps_limit
local FIRST = { h = FIRST_HIGH, n = FIRST_NORMAL, l = FIRST_LOW }

-- Add to the statistics of the day under `stem`: '' for everybody, or a user's. One read and one write are cheaper than an
-- HINCRBY for each counter. Returns whether these are the first of the day.
local function add(stem, ms)
  local turns, spent = unpack(redis.call('HMGET', STATISTICS, stem .. 'turns', stem .. 'ms'))
  redis.call('HSET', STATISTICS, stem .. 'turns', (turns or 0) + 1, stem .. 'ms', (spent or 0) + ms)
  return not turns
end

local function count(user, ms)
  if user ~= '' then add('u:' .. user .. ':', ms) end
  if add('', ms) then redis.call('EXPIRE', STATISTICS, 691200) end
end

local function leave(user)
  if user ~= '' and redis.call('HINCRBY', PRINCIPALS, user, -1) <= 0 then
    redis.call('HDEL', PRINCIPALS, user)
  end
end

-- Start the idle conversation's time to live, the same for all its parts but the events: a follower that comes back
-- later gets the result, and a notice stays for an hour.
local function rest()
  for _, key in ipairs({ CONVERSATION, HISTORY, PREFERENCES }) do redis.call('PEXPIRE', key, KEEP) end
  redis.call('EXPIRE', EVENTS, told and NOW - told < 3600000 and 3600 or 60)
end

local function forget()
  redis.call('DEL', HISTORY)
  redis.call('HDEL', CONVERSATION, 'last')
end

-- Remove the entry of an unfinished turn from `at`, wherever that is.
local function remove_entry(turn, at)
  if at == SLEEPING then return rouse(turn) end
  local stream, entry = string.match(at, '^(.*)|([^|]*)$')
  redis.pcall('XACK', stream, 'g', entry)
  redis.call('XDEL', stream, entry)
end

-- Clear the journal of a call.
local function clear_call(call)
  redis.call('HDEL', JOURNAL, call .. ':e', call .. ':b', call .. ':u', call .. ':r', call .. ':a', call .. ':k',
    call .. ':s', call .. ':c', call .. ':p')
  redis.call('DEL', STEPS_STEM .. call)
  redis.call('ZREM', ACTIVE, member(NAME, call))
end

-- End the `number` calls that `turn` has made as far as they are unfinished, and theirs: nobody waits for them any more.
local function end_calls(turn, number)
  for n = 1, tonumber(number or 0) do
    local call = turn .. '.' .. n
    local at, calls = unpack(redis.call('HMGET', JOURNAL, call .. ':a', call .. ':c'))
    if at then
      remove_entry(call, at)
      end_calls(call, calls)
      record(call, 0, 'bus', 'CANCELLED', 'with turn ' .. turn)
      clear_call(call)
    end
  end
end

-- Give the result of a call to the handler that made it.
local function finish_call(call, final)
  local key, calls = unpack(redis.call('HMGET', JOURNAL, call .. ':k', call .. ':c'))
  end_calls(call, calls)
  clear_call(call)
  settle_step(caller_of(call), key, final, STEPS_LIMIT, call)
end

-- Write the one answer of `turn` wherever it is awaited, end its calls, and clear its journal. The key `result` gets the id of the final
-- event, a space, and the event.
local function finish(turn, result, kind, final)
  if is_call(turn) then return finish_call(turn, final) end
  local user, front, received, stepped, calls, schedule = unpack(redis.call('HMGET', JOURNAL, turn .. ':u', turn .. ':o',
    turn .. ':r', turn .. ':s', turn .. ':c', turn .. ':t'))
  user = user or ''
  local id = event(turn, kind, unpack(schedule and { 's', schedule, 'x', final } or { 'x', final }))
  redis.call('SET', result, id .. ' ' .. final, 'PX', KEEP_RESULT)
  if front and front ~= '' then
    redis.call('XADD', OUTBOX, '*', 'c', NAME, 't', turn, 'e', final, unpack(schedule and { 's', schedule } or {}))
  end
  count(user, math.max(0, NOW - (received or NOW)))
  if kind ~= 'final' then
    redis.call('HINCRBY', STATISTICS, kind, 1)
    if user ~= '' then redis.call('HINCRBY', STATISTICS, 'u:' .. user .. ':' .. kind, 1) end
  end
  leave(user)
  if calls then end_calls(turn, calls) end
  redis.call('HDEL', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':b', turn .. ':u', turn .. ':o', turn .. ':r',
    turn .. ':g', turn .. ':d', turn .. ':s', turn .. ':c', turn .. ':p')
  if schedule then
    redis.call('HDEL', JOURNAL, turn .. ':t')
    if not front or front == '' then
      told = NOW
      redis.call('HSET', CONVERSATION, 'told', told)
    end
  end
  if stepped then redis.call('DEL', STEPS_STEM .. turn) end
  if is_control(turn) then
    redis.call('HINCRBY', CONVERSATION, 'ctl', -1)
    redis.call('ZREM', ACTIVE, NAME .. '\31' .. turn)
    if not running then rest() end
  else
    redis.call('HSET', CONVERSATION, 'done', turn)
  end
end

-- Remove the entry of the running turn, wherever it is. False, with nothing written, if the caller looked elsewhere.
local function evict()
  if at == SLEEPING then
    rouse(TURN)
  elseif at == place(STREAM, ENTRY) then
    redis.pcall('XACK', STREAM, 'g', ENTRY)
    redis.call('XDEL', STREAM, ENTRY)
  else
    return false
  end
  return true
end

-- Make `turn` the running turn, with more `fields` of the conversation. It sleeps first if it is held until `due`.
local function run(turn, envelope, parts, band, received, due, ...)
  local stream, to = FIRST[band], SLEEPING
  if tonumber(due or 0) > NOW then
    redis.call('HSET', JOURNAL, 'defer:s', stream, 'defer:h', 0)
    redis.call('ZADD', DEFERRED, due, NAME)
  else
    local id = redis.call('XADD', stream, '*', 'c', NAME, 't', turn, 'h', 0, 'e', envelope, 'x', parts or '',
      'r', received or NOW)
    to = place(stream, id)
  end
  redis.call('HSET', CONVERSATION, 'cur', turn, 'at', to, ...)
  redis.call('ZADD', ACTIVE, NOW, NAME)
end

-- Run the next waiting turn of the conversation, or let the conversation rest. If the turn that ended is the newest, none
-- is waiting.
local function release()
  local turn = newest ~= running and redis.call('LPOP', MAILBOX)
  while turn do
    local envelope, parts, band, received, due =
      unpack(redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':b', turn .. ':r', turn .. ':d'))
    if envelope then return run(turn, envelope, parts, band, received, due) end
    turn = redis.call('LPOP', MAILBOX)
  end
  redis.call('HDEL', CONVERSATION, 'cur', 'at')
  redis.call('ZREM', ACTIVE, NAME)
  rest()
end

-- Append to the history: a list of messages as JSON.
local function remember(list)
  if #list == 0 then return end
  if redis.call('RPUSH', HISTORY, unpack(list)) > tonumber(HISTORY_LIMIT) then
    redis.call('LTRIM', HISTORY, -tonumber(HISTORY_LIMIT), -1)
  end
end

