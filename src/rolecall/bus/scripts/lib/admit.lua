-- Takes messages in; follows lib/guard.lua and lib/finish.lua, whose TURN is the turn to interrupt, or ''.
-- KEYS 18 idempotency
-- ARGV 9 digest of the body · 10 envelope · 11 the same as a part of another turn · 12 band · 13 principal
--      14 outbox or '' · 15 mailbox limit · 16 in-flight limit · 17 user limit · 18 user soft limit
--      19 lane ordered|control · 20 ms a repeat is known · 21 idle ms to a new session · 22 ms east of UTC
--      23 front end's instance · 24 title · 25 text for the log · 26 '1' joins whatever of the same user has not begun
--      27 group whose messages become one turn, or '' · 28 ms to hold the turn back · 29 most bytes of a turn with parts
local IDEM, DIGEST, ENVELOPE, PART, BAND, USER = KEYS[18], ARGV[9], ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local INSTANCE, TITLE, SAID, BESIDE = ARGV[23], ARGV[24], ARGV[25], ARGV[19] == 'control'
local COLLECT, GROUP, HOLD = ARGV[26] == '1', ARGV[27], tonumber(ARGV[28])
if BESIDE then COLLECT, GROUP, HOLD = false, '', 0 end

-- A message that was taken before: DUP with its turn, CONFLICT if it said something else.
local function known()
  local found = redis.call('GET', IDEM)
  if not found then return nil end
  local turn, digest = string.match(found, '^([^|]*)|([^|]*)')
  return { digest == DIGEST and 'DUP' or 'CONFLICT', turn, 0, NOW, '' }
end

-- The newest turn of the same user that has not begun and takes this message in, or nil.
local function host()
  if not COLLECT and GROUP == '' then return nil end
  local turns = redis.call('LRANGE', MAILBOX, 0, -1)
  if held() then table.insert(turns, 1, state[1]) end
  for i = #turns, 1, -1 do
    local job = redis.call('HMGET', JOURNAL, turns[i] .. ':u', turns[i] .. ':g')
    if job[1] == USER and (COLLECT or job[2] == GROUP) then return turns[i] end
  end
end

local function received(turn, begun, note)
  record(turn, 0, INSTANCE, 'RECEIVED', NAME .. '/' .. turn .. ' ' .. SAID, begun)
  if note then record(turn, 0, INSTANCE, 'NOTE', note, begun) end
end

-- Make the message a part of `turn`, which has not begun. A hold goes on, but not for ever.
local function join(turn)
  local job = redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':d', turn .. ':r')
  local parts = job[2] and job[2] .. ',\n' .. PART or PART
  if #job[1] + #parts > tonumber(ARGV[29]) then return { 'FULL', turn, 0, NOW, '' } end
  redis.call('HSET', JOURNAL, turn .. ':x', parts)
  redis.call('SET', IDEM, turn .. '|' .. DIGEST .. '|' .. select(2, string.gsub(parts, '\n', '')) + 1, 'PX', ARGV[20])
  local due = math.min(NOW + HOLD, tonumber(job[4]) + 5 * HOLD)
  if due > tonumber(job[3] or NOW) then
    redis.call('HSET', JOURNAL, turn .. ':d', due)
    if turn == state[1] then redis.call('ZADD', DEFERRED, due, NAME) end
  end
  received(turn, job[4], 'joins this turn, which has not begun')
  return { 'MERGED', turn, (redis.call('LPOS', MAILBOX, turn) or -1) + 1, NOW, '' }
end

-- Why no new turn is made, or nil. `ended` is 1 when the running turn is about to give way, else 0. A user with much at
-- work is not refused yet, but goes one band down.
local function refused(ended)
  local unfinished = USER ~= '' and tonumber(redis.call('HGET', PRINCIPALS, USER) or 0) - ended or 0
  local waiting = state[1] and redis.call('LLEN', MAILBOX) or 0
  if BESIDE then
    local open = tonumber(redis.call('HGET', CONV, 'ctl') or 0)
    if open >= 4 then return { 'FULL', '', open, NOW, '' } end
  elseif unfinished >= tonumber(ARGV[17]) then
    return { 'FULL', '', unfinished, NOW, '' }
  elseif state[1] and waiting - ended >= tonumber(ARGV[15]) then
    return { 'FULL', '', waiting, NOW, '' }
  elseif not state[1] and redis.call('ZCARD', ACTIVE) >= tonumber(ARGV[16]) then
    return { 'BUSY', '', 0, NOW, '' }
  end
  if unfinished >= tonumber(ARGV[18]) then BAND = BAND == 'h' and 'n' or 'l' end
end

-- Note the message's session: a new one after a day change, a long rest or on request.
local function begin_session()
  local before = redis.call('HMGET', CONV, 'last', 'title')
  local function day(ms) return math.floor((ms + tonumber(ARGV[22])) / 86400000) end
  local session = tonumber(state[3] or 0)
  local fresh = not state[3] or day(NOW) ~= day(session) or NOW - tonumber(before[1] or 0) > tonumber(ARGV[21])
  state[3] = fresh and NOW or session
  redis.call('HSET', CONV, 'session', state[3], 'last', NOW)
  if TITLE ~= '' then redis.call('HSET', CONV, 'title', TITLE) end
  return fresh and 'session of ' .. NAME .. ' title ' .. (TITLE ~= '' and TITLE or before[2] or '-')
end

-- Make the message a turn: it runs, sleeps out its hold, or waits for those before it.
local function accept()
  local turn = BESIDE and 'c' .. redis.call('HINCRBY', CONV, 'cseq', 1) or tostring(redis.call('HINCRBY', CONV, 'seq', 1))
  local fresh = begin_session()
  -- What runs is not forgotten, however long it takes: the time to live is set anew when the conversation rests.
  if not BESIDE then redis.call('PERSIST', CONV)
  elseif not state[1] then redis.call('PEXPIRE', CONV, KEEP) end
  redis.call('SET', IDEM, turn .. '|' .. DIGEST, 'PX', ARGV[20])
  redis.call('HSET', JOURNAL, turn .. ':e', ENVELOPE, turn .. ':b', BAND, turn .. ':u', USER, turn .. ':o', ARGV[14],
    turn .. ':r', NOW)
  if GROUP ~= '' then redis.call('HSET', JOURNAL, turn .. ':g', GROUP) end
  if HOLD > 0 then redis.call('HSET', JOURNAL, turn .. ':d', NOW + HOLD) end
  if USER ~= '' then redis.call('HINCRBY', PRINCIPALS, USER, 1) end
  if fresh then record(turn, 0, INSTANCE, 'NOTE', fresh, NOW) end
  local outcome, place = 'RUN', 0
  if BESIDE then
    redis.call('HINCRBY', CONV, 'ctl', 1)
    redis.call('ZADD', ACTIVE, NOW, NAME .. '\31' .. turn)
    redis.call('XADD', FIRST.h, '*', 'c', NAME, 't', turn, 'h', 0, 'e', ENVELOPE)
  elseif state[1] then
    outcome, place = 'WAIT', redis.call('RPUSH', MAILBOX, turn)
  else
    run(turn, { ENVELOPE, '', BAND, HOLD > 0 and NOW + HOLD })
  end
  received(turn, NOW, outcome == 'WAIT' and 'waits, place ' .. place)
  return { outcome, turn, place, NOW, event(turn, outcome == 'RUN' and 'accepted' or 'queued', 'n', place) }
end
