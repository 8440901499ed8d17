-- Ends turns; follows lib/guard.lua.
-- KEYS 7 mailbox · 8 active · 9 deferred · 10 principals · 11 history · 12 statistics of the day · 13 outbox
--      14 15 16 first role's streams h n l · 17 result of the turn
-- ARGV 6 ms a conversation is kept · 7 ms a result is kept · 8 history limit
local MAILBOX, ACTIVE, DEFERRED, PRINCIPALS, HISTORY = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local STATS, OUTBOX, FIRST = KEYS[12], KEYS[13], { h = KEYS[14], n = KEYS[15], l = KEYS[16] }
local KEEP, KEEP_RESULT, HISTORY_LIMIT = ARGV[6], ARGV[7], tonumber(ARGV[8])

local function count(user, name, by)
  redis.call('HINCRBY', STATS, name, by)
  if user ~= '' then redis.call('HINCRBY', STATS, 'u:' .. user .. ':' .. name, by) end
end

local function leave(user)
  if user ~= '' and redis.call('HINCRBY', PRINCIPALS, user, -1) <= 0 then
    redis.call('HDEL', PRINCIPALS, user)
  end
end

-- An idle conversation is kept for its time, and no part of it longer than another.
local function rest()
  for _, key in ipairs({ CONV, HISTORY, PREFS }) do redis.call('PEXPIRE', key, KEEP) end
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
  redis.call('EXPIRE', STATS, 691200)
  leave(user)
  redis.call('HDEL', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':b', turn .. ':u', turn .. ':o', turn .. ':r',
    turn .. ':g', turn .. ':d')
  if string.sub(turn, 1, 1) == 'c' then
    redis.call('HINCRBY', CONV, 'ctl', -1)
    redis.call('ZREM', ACTIVE, NAME .. '\31' .. turn)
    if not state[1] then rest() end
  else
    redis.call('HSET', CONV, 'done', turn)
  end
end

-- Drop the entry of the running turn, wherever it is. False when the caller did not know where: nothing is written.
local function evict()
  if state[2] == 'z' then
    redis.call('ZREM', DEFERRED, NAME)
  elseif state[2] == SRC .. '|' .. ID then
    redis.pcall('XACK', SRC, 'g', ID)
    redis.call('XDEL', SRC, ID)
  else
    return false
  end
  return true
end

-- Let `turn` be the one that runs; what is left of its hold it sleeps out. `job` is its envelope, parts, band and due.
local function run(turn, job)
  local stream, at = FIRST[job[3]], 'z'
  if tonumber(job[4] or 0) > NOW then
    redis.call('HSET', JOURNAL, 'defer:s', stream, 'defer:h', 0)
    redis.call('ZADD', DEFERRED, job[4], NAME)
  else
    at = stream .. '|' .. redis.call('XADD', stream, '*', 'c', NAME, 't', turn, 'h', 0, 'e', job[1], 'x', job[2] or '')
  end
  redis.call('HSET', CONV, 'cur', turn, 'at', at)
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
  redis.call('HDEL', CONV, 'cur', 'at')
  redis.call('ZREM', ACTIVE, NAME)
  rest()
end

-- ARGV from `i`: n, then n remembered messages. Returns the index behind them.
local function remember(i)
  local n = tonumber(ARGV[i])
  for m = i + 1, i + n do redis.call('RPUSH', HISTORY, ARGV[m]) end
  if n > 0 then redis.call('LTRIM', HISTORY, -HISTORY_LIMIT, -1) end
  return i + n + 1
end
