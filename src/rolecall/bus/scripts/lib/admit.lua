-- Prelude of the scripts that admit messages; follows lib/turn.lua and lib/finish.lua, whose turn is the one to
-- interrupt, or ''.
--   digest: of the body, to tell a repeat from another message; part: the envelope as a part of another turn
--   principal: the user whose limits apply; reply_to: front end whose outbox gets the answer, or ''
--   lane: ordered | control; repeat_ms: how long a repeat is recognised; idle_ms: rest after which a session is new
--   utc_offset: ms east of UTC; instance: of the front end; said: text for the log
--   collect: '1' joins any turn of the same user that has not begun
--   group: messages of one group become one turn, or ''; hold: ms to hold the turn back; max_bytes: of a turn with parts
-- keys: idempotency
-- args: digest envelope part band principal reply_to mailbox_limit in_flight_limit user_limit user_soft_limit
-- args: lane repeat_ms idle_ms utc_offset instance title said collect group hold max_bytes
local beside, collect, group, hold = LANE == 'control', COLLECT == '1', GROUP, tonumber(HOLD)
if beside then collect, group, hold = false, '', 0 end

-- A message that was taken before: DUP with its turn, CONFLICT if it said something else.
local function known()
  local found = redis.call('GET', IDEMPOTENCY)
  if not found then return nil end
  local turn, digest = string.match(found, '^([^|]*)|([^|]*)')
  return { digest == DIGEST and 'DUP' or 'CONFLICT', turn, 0, NOW, '' }
end

-- The newest turn of the same user that has not begun and takes this message in, or nil.
local function host()
  if not collect and group == '' then return nil end
  local turns = redis.call('LRANGE', MAILBOX, 0, -1)
  if held() then table.insert(turns, 1, state[1]) end
  for i = #turns, 1, -1 do
    local job = redis.call('HMGET', JOURNAL, turns[i] .. ':u', turns[i] .. ':g')
    if job[1] == PRINCIPAL and (collect or job[2] == group) then return turns[i] end
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
  if #job[1] + #parts > tonumber(MAX_BYTES) then return { 'FULL', turn, 0, NOW, '' } end
  redis.call('HSET', JOURNAL, turn .. ':x', parts)
  redis.call('SET', IDEMPOTENCY, turn .. '|' .. DIGEST .. '|' .. select(2, string.gsub(parts, '\n', '')) + 1, 'PX', REPEAT_MS)
  local due = math.min(NOW + hold, tonumber(job[4]) + 5 * hold)
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
  local unfinished = PRINCIPAL ~= '' and tonumber(redis.call('HGET', PRINCIPALS, PRINCIPAL) or 0) - ended or 0
  local waiting = state[1] and redis.call('LLEN', MAILBOX) or 0
  if beside then
    local open = tonumber(redis.call('HGET', CONVERSATION, 'ctl') or 0)
    if open >= 4 then return { 'FULL', '', open, NOW, '' } end
  elseif unfinished >= tonumber(USER_LIMIT) then
    return { 'FULL', '', unfinished, NOW, '' }
  elseif state[1] and waiting - ended >= tonumber(MAILBOX_LIMIT) then
    return { 'FULL', '', waiting, NOW, '' }
  elseif not state[1] and redis.call('ZCARD', ACTIVE) >= tonumber(IN_FLIGHT_LIMIT) then
    return { 'BUSY', '', 0, NOW, '' }
  end
  if unfinished >= tonumber(USER_SOFT_LIMIT) then BAND = BAND == 'h' and 'n' or 'l' end
end

-- Note the message's session: a new one after a day change, a long rest or on request.
local function begin_session()
  local before = redis.call('HMGET', CONVERSATION, 'last', 'title')
  local function day(ms) return math.floor((ms + tonumber(UTC_OFFSET)) / 86400000) end
  local session = tonumber(state[3] or 0)
  local fresh = not state[3] or day(NOW) ~= day(session) or NOW - tonumber(before[1] or 0) > tonumber(IDLE_MS)
  state[3] = fresh and NOW or session
  redis.call('HSET', CONVERSATION, 'session', state[3], 'last', NOW)
  if TITLE ~= '' then redis.call('HSET', CONVERSATION, 'title', TITLE) end
  return fresh and 'session of ' .. NAME .. ' title ' .. (TITLE ~= '' and TITLE or before[2] or '-')
end

-- Make the message a turn: it runs, sleeps out its hold, or waits for those before it.
local function accept()
  local turn = beside and 'c' .. redis.call('HINCRBY', CONVERSATION, 'cseq', 1) or tostring(redis.call('HINCRBY', CONVERSATION, 'seq', 1))
  local fresh = begin_session()
  -- What runs is not forgotten, however long it takes: the time to live is set anew when the conversation rests.
  if not beside then redis.call('PERSIST', CONVERSATION)
  elseif not state[1] then redis.call('PEXPIRE', CONVERSATION, KEEP) end
  redis.call('SET', IDEMPOTENCY, turn .. '|' .. DIGEST, 'PX', REPEAT_MS)
  redis.call('HSET', JOURNAL, turn .. ':e', ENVELOPE, turn .. ':b', BAND, turn .. ':u', PRINCIPAL, turn .. ':o', REPLY_TO,
    turn .. ':r', NOW)
  if group ~= '' then redis.call('HSET', JOURNAL, turn .. ':g', group) end
  if hold > 0 then redis.call('HSET', JOURNAL, turn .. ':d', NOW + hold) end
  if PRINCIPAL ~= '' then redis.call('HINCRBY', PRINCIPALS, PRINCIPAL, 1) end
  if fresh then record(turn, 0, INSTANCE, 'NOTE', fresh, NOW) end
  local outcome, place = 'RUN', 0
  if beside then
    redis.call('HINCRBY', CONVERSATION, 'ctl', 1)
    redis.call('ZADD', ACTIVE, NOW, NAME .. '\31' .. turn)
    redis.call('XADD', FIRST.h, '*', 'c', NAME, 't', turn, 'h', 0, 'e', ENVELOPE)
  elseif state[1] then
    outcome, place = 'WAIT', redis.call('RPUSH', MAILBOX, turn)
  else
    run(turn, { ENVELOPE, '', BAND, hold > 0 and NOW + hold })
  end
  received(turn, NOW, outcome == 'WAIT' and 'waits, place ' .. place)
  return { outcome, turn, place, NOW, event(turn, outcome == 'RUN' and 'accepted' or 'queued', 'n', place) }
end
