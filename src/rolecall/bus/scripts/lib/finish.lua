-- Prelude of the scripts that end turns; follows lib/turn.lua.
--   statistics: of the day; outbox: of the front end that the answers go to
--   first_high, first_normal, first_low: the streams of the first role, by priority; result: of the turn
--   keep, keep_result: ms a conversation and a result are kept; history_limit: messages
-- keys: mailbox active deferred principals history statistics outbox first_high first_normal first_low result
-- args: keep keep_result history_limit
local FIRST = { h = FIRST_HIGH, n = FIRST_NORMAL, l = FIRST_LOW }

local function count(user, name, by)
  redis.call('HINCRBY', STATISTICS, name, by)
  if user ~= '' then redis.call('HINCRBY', STATISTICS, 'u:' .. user .. ':' .. name, by) end
end

local function leave(user)
  if user ~= '' and redis.call('HINCRBY', PRINCIPALS, user, -1) <= 0 then
    redis.call('HDEL', PRINCIPALS, user)
  end
end

-- An idle conversation is kept for its time, and no part of it longer than another.
local function rest()
  for _, key in ipairs({ CONVERSATION, HISTORY, PREFERENCES }) do redis.call('PEXPIRE', key, KEEP) end
  redis.call('EXPIRE', EVENTS, 600)
end

-- Write the turn's one answer wherever it is waited for, and forget its journal.
-- The result holds the id of the final event in front.
local function finish(turn, result, kind, final)
  local job = redis.call('HMGET', JOURNAL, turn .. ':u', turn .. ':o', turn .. ':r')
  local user = job[1] or ''
  local id = event(turn, kind, 'x', final)
  redis.call('SET', result, id .. ' ' .. final, 'PX', KEEP_RESULT)
  if job[2] and job[2] ~= '' then redis.call('XADD', OUTBOX, '*', 'c', NAME, 't', turn, 'e', final) end
  count(user, 'turns', 1)
  count(user, 'ms', math.max(0, NOW - (job[3] or NOW)))
  if kind ~= 'final' then count(user, kind, 1) end
  redis.call('EXPIRE', STATISTICS, 691200)
  leave(user)
  redis.call('HDEL', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':b', turn .. ':u', turn .. ':o', turn .. ':r',
    turn .. ':g', turn .. ':d')
  if is_control(turn) then
    redis.call('HINCRBY', CONVERSATION, 'ctl', -1)
    redis.call('ZREM', ACTIVE, NAME .. '\31' .. turn)
    if not state[1] then rest() end
  else
    redis.call('HSET', CONVERSATION, 'done', turn)
  end
end

-- Drop the entry of the running turn, wherever it is. False when the caller did not know where: nothing is written.
local function evict()
  if state[2] == SLEEPING then
    redis.call('ZREM', DEFERRED, NAME)
  elseif state[2] == STREAM .. '|' .. ENTRY then
    redis.pcall('XACK', STREAM, 'g', ENTRY)
    redis.call('XDEL', STREAM, ENTRY)
  else
    return false
  end
  return true
end

-- Let `turn` be the one that runs; what is left of its hold it sleeps out. `job` is its envelope, parts, band and due.
local function run(turn, job)
  local stream, at = FIRST[job[3]], SLEEPING
  if tonumber(job[4] or 0) > NOW then
    redis.call('HSET', JOURNAL, 'defer:s', stream, 'defer:h', 0)
    redis.call('ZADD', DEFERRED, job[4], NAME)
  else
    at = stream .. '|' .. redis.call('XADD', stream, '*', 'c', NAME, 't', turn, 'h', 0, 'e', job[1], 'x', job[2] or '')
  end
  redis.call('HSET', CONVERSATION, 'cur', turn, 'at', at)
  redis.call('ZADD', ACTIVE, NOW, NAME)
end

-- Let the conversation's next waiting turn run, or let the conversation rest.
local function release()
  redis.call('HDEL', JOURNAL, 'defer:s', 'defer:h', 'defer:e')
  local turn = redis.call('LPOP', MAILBOX)
  while turn do
    local job = redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':b', turn .. ':d')
    if job[1] then return run(turn, job) end
    turn = redis.call('LPOP', MAILBOX)
  end
  redis.call('HDEL', CONVERSATION, 'cur', 'at')
  redis.call('ZREM', ACTIVE, NAME)
  rest()
end

-- Append to the history: a list of messages as JSON.
local function remember(list)
  for _, message in ipairs(list) do redis.call('RPUSH', HISTORY, message) end
  if #list > 0 then redis.call('LTRIM', HISTORY, -tonumber(HISTORY_LIMIT), -1) end
end
