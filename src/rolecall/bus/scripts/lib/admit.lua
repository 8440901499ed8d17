-- Prelude of the scripts that admit a message; follows finish. TURN is the turn to interrupt, or ''.
--   digest: of the body, to tell a repeat from another message with the same idempotency key
--   part: the message as a part of another turn
--   principal: the user whose limits apply, or ''
--   reply_to: front end whose outbox gets the answer, or ''
--   lane: ordered | control
--   repeat_ms: how long a repeat is recognized
--   idle_ms: a session ends after this much rest
--   utc_offset: ms east of UTC
--   instance: of the front end
--   said: the message as the log shows it
--   collect: '1' joins any turn of the same user that has not begun
--   group: messages of one group become one turn, or ''
--   apart: '1' for a command, which collects nothing and is not collected; only messages of its group join it
--   hold: ms to hold the turn back
--   max_bytes: limit for a turn with all its parts
-- keys: idempotency
-- args: digest envelope part band principal reply_to mailbox_limit in_flight_limit user_limit user_soft_limit
-- args: lane repeat_ms idle_ms utc_offset instance title said collect group apart hold max_bytes
local unordered, collect, group, hold = LANE == 'control', COLLECT == '1', GROUP, tonumber(HOLD)
if unordered then collect, group, hold = false, '', 0 end
if APART == '1' then collect = false end

-- The reply for a message that was admitted before: DUP with its turn, or CONFLICT if its body was another.
local function known()
  local found = redis.call('GET', IDEMPOTENCY)
  if not found then return nil end
  local turn, digest = string.match(found, '^([^|]*)|([^|]*)')
  return { digest == DIGEST and 'DUP' or 'CONFLICT', turn, 0, NOW, '' }
end

-- The newest turn of the same user that has not begun and that this message can join, or nil.
local function host()
  if not collect and group == '' then return nil end
  local turns = redis.call('LRANGE', MAILBOX, 0, -1)
  if held() then table.insert(turns, 1, running) end
  for i = #turns, 1, -1 do
    local user, its_group = unpack(redis.call('HMGET', JOURNAL, turns[i] .. ':u', turns[i] .. ':g'))
    local command = string.sub(its_group or '', 1, 1) == ALONE
    if command and user == PRINCIPAL then collect = false end -- or the message would overtake the command
    local fits = its_group == group or (group ~= '' and its_group == ALONE .. group)
    if user == PRINCIPAL and (collect or fits) then return turns[i] end
  end
end

local function received(turn, since, note)
  record(turn, 0, INSTANCE, 'RECEIVED', NAME .. '/' .. turn .. ' ' .. SAID, since)
  if note then record(turn, 0, INSTANCE, 'NOTE', note, since) end
end

-- Make the message a part of `turn`, which has not begun. Its hold is renewed, up to five times as long in all.
local function join(turn)
  local envelope, parts, due, since =
    unpack(redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x', turn .. ':d', turn .. ':r'))
  parts = parts and parts .. ',\n' .. PART or PART
  if #envelope + #parts > tonumber(MAX_BYTES) then return { 'FULL', turn, 0, NOW, '' } end
  redis.call('HSET', JOURNAL, turn .. ':x', parts)
  local number = select(2, string.gsub(parts, '\n', '')) + 1
  redis.call('SET', IDEMPOTENCY, turn .. '|' .. DIGEST .. '|' .. number, 'PX', REPEAT_MS)
  local renewed = math.min(NOW + hold, tonumber(since) + 5 * hold)
  if renewed > tonumber(due or NOW) then
    redis.call('HSET', JOURNAL, turn .. ':d', renewed)
    if turn == running then redis.call('ZADD', DEFERRED, renewed, NAME) end
  end
  received(turn, since, 'joins this turn, which has not begun')
  flush()
  return { 'MERGED', turn, (redis.call('LPOS', MAILBOX, turn) or -1) + 1, NOW, '' }
end

-- The reply if no turn can be made, or nil. `ended` is 1 if the running turn is about to be cancelled, else 0. Over the
-- soft limit, a user's turn is admitted one band lower. A command has room beyond the limit of a user, once as much.
local function refused(ended)
  local unfinished = PRINCIPAL ~= '' and tonumber(redis.call('HGET', PRINCIPALS, PRINCIPAL) or 0) - ended or 0
  local waiting = running and redis.call('LLEN', MAILBOX) or 0
  if unordered then
    local open = tonumber(redis.call('HGET', CONVERSATION, 'ctl') or 0)
    if open >= 4 or unfinished >= 2 * tonumber(USER_LIMIT) then return { 'FULL', '', open, NOW, '' } end
  elseif unfinished >= tonumber(USER_LIMIT) then
    return { 'FULL', '', unfinished, NOW, '' }
  elseif running and waiting - ended >= tonumber(MAILBOX_LIMIT) then
    return { 'FULL', '', waiting, NOW, '' }
  elseif not running and redis.call('ZCARD', ACTIVE) >= tonumber(IN_FLIGHT_LIMIT) then
    return { 'BUSY', '', 0, NOW, '' }
  end
  if unfinished >= tonumber(USER_SOFT_LIMIT) then BAND = BAND == 'h' and 'n' or 'l' end
end

-- Begin a new session on a new day, after a long rest or on request. Returns the log record of a new one, and what
-- changes in the conversation.
local function begin_session()
  local function day(ms) return math.floor((ms + tonumber(UTC_OFFSET)) / 86400000) end
  local fresh = not session or day(NOW) ~= day(tonumber(session)) or NOW - tonumber(rested or 0) > tonumber(IDLE_MS)
  session = fresh and NOW or tonumber(session)
  local changes = { 'session', session, 'last', NOW }
  if TITLE ~= '' then changes[5], changes[6] = 'title', TITLE end
  return fresh and 'session of ' .. NAME .. ' title ' .. (TITLE ~= '' and TITLE or known_title or '-'), changes
end

-- Make the message a turn: it runs, is held back, or waits in the mailbox.
local function accept()
  local turn = unordered and 'c' .. redis.call('HINCRBY', CONVERSATION, 'cseq', 1) or string.format('%d', (newest or 0) + 1)
  local known_before = session
  local fresh, changes = begin_session()
  if not unordered then changes[#changes + 1], changes[#changes + 2] = 'seq', turn end
  redis.call('SET', IDEMPOTENCY, turn .. '|' .. DIGEST, 'PX', REPEAT_MS)
  redis.call('HSET', JOURNAL, turn .. ':e', ENVELOPE, turn .. ':b', BAND, turn .. ':u', PRINCIPAL, turn .. ':o', REPLY_TO,
    turn .. ':r', NOW)
  if APART == '1' then group = ALONE .. group end
  if group ~= '' then redis.call('HSET', JOURNAL, turn .. ':g', group) end
  if hold > 0 then redis.call('HSET', JOURNAL, turn .. ':d', NOW + hold) end
  if PRINCIPAL ~= '' then redis.call('HINCRBY', PRINCIPALS, PRINCIPAL, 1) end
  if fresh then record(turn, 0, INSTANCE, 'NOTE', fresh, NOW) end
  local outcome, ahead = 'RUN', 0
  if unordered then
    redis.call('HINCRBY', CONVERSATION, 'ctl', 1)
    redis.call('HSET', CONVERSATION, unpack(changes))
    redis.call('ZADD', ACTIVE, NOW, NAME .. '\31' .. turn)
    redis.call('XADD', FIRST.h, '*', 'c', NAME, 't', turn, 'h', 0, 'e', ENVELOPE, 'r', NOW)
    if not running then redis.call('PEXPIRE', CONVERSATION, KEEP) end
  elseif running then
    redis.call('HSET', CONVERSATION, unpack(changes))
    outcome, ahead = 'WAIT', redis.call('RPUSH', MAILBOX, turn)
  else
    -- A conversation with a running turn never expires; its time to live starts when it rests.
    if known_before then redis.call('PERSIST', CONVERSATION) end
    run(turn, ENVELOPE, '', BAND, NOW, hold > 0 and NOW + hold, unpack(changes))
  end
  received(turn, NOW, outcome == 'WAIT' and 'waits, place ' .. ahead)
  flush()
  local id = event(turn, outcome == 'RUN' and 'accepted' or 'queued', 'n', ahead)
  redis.call('EXPIRE', EVENTS, 3600)
  return { outcome, turn, ahead, NOW, id }
end

