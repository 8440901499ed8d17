-- Accept a user's message as the next turn of its conversation: run it, let it wait, or refuse and write nothing.
-- KEYS 1 conversation · 2 mailbox · 3 journal · 4 idempotency · 5 active · 6 events · 7 log · 8 principals
--      9 10 11 first role's streams h n l
-- ARGV 1 conversation's name · 2 channel · 3 digest of the body · 4 envelope · 5 band · 6 principal · 7 outbox or ''
--      8 mailbox limit · 9 in-flight limit · 10 user limit · 11 user soft limit · 12 lane ordered|control
--      13 ms a repeat is known · 14 idle ms to a new session · 15 ms east of UTC · 16 front end's instance
--      17 title · 18 text for the log · 19 ms the conversation is kept
-- Returns {RUN|WAIT|DUP|CONFLICT|FULL|BUSY, turn, place, server ms, id of the turn's first event or ''}. A repeat of the same key and body is DUP: nothing changes.
local CONV, MAILBOX, JOURNAL, IDEM, ACTIVE, EVENTS, LOG = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local NAME, BAND, USER, CONTROL = ARGV[1], ARGV[5], ARGV[6], ARGV[12] == 'control'
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

local known = redis.call('GET', IDEM)
if known then
  local turn, digest = string.match(known, '^(.-)|(.*)$')
  return { digest == ARGV[3] and 'DUP' or 'CONFLICT', turn, 0, NOW, '' }
end
local state = redis.call('HMGET', CONV, 'cur', 'session', 'last', 'ctl', 'title')
local waiting = redis.call('LLEN', MAILBOX)
local unfinished = USER ~= '' and tonumber(redis.call('HGET', KEYS[8], USER) or 0) or 0
if CONTROL then
  if tonumber(state[4] or 0) >= 4 then return { 'FULL', '', 4, NOW, '' } end
elseif unfinished >= tonumber(ARGV[10]) then
  return { 'FULL', '', unfinished, NOW, '' }
elseif state[1] then
  if waiting >= tonumber(ARGV[8]) then return { 'FULL', '', waiting, NOW, '' } end
elseif redis.call('ZCARD', ACTIVE) >= tonumber(ARGV[9]) then
  return { 'BUSY', '', 0, NOW, '' }
end

local function day(ms) return math.floor((ms + tonumber(ARGV[15])) / 86400000) end
local session, fresh = tonumber(state[2] or 0), false
if not state[2] or day(NOW) ~= day(session) or NOW - tonumber(state[3] or 0) > tonumber(ARGV[14]) then
  session, fresh = NOW, true
end
if unfinished >= tonumber(ARGV[11]) then BAND = BAND == 'h' and 'n' or 'l' end
local turn = CONTROL and 'c' .. redis.call('HINCRBY', CONV, 'cseq', 1) or tostring(redis.call('HINCRBY', CONV, 'seq', 1))
redis.call('HSET', CONV, 'session', session, 'last', NOW)
if ARGV[17] ~= '' then redis.call('HSET', CONV, 'title', ARGV[17]) end
-- What runs is not forgotten, however long it takes: the time to live is set anew when the conversation rests.
if not CONTROL then redis.call('PERSIST', CONV)
elseif not state[1] then redis.call('PEXPIRE', CONV, ARGV[19]) end
redis.call('SET', IDEM, turn .. '|' .. ARGV[3], 'PX', ARGV[13])
redis.call('HSET', JOURNAL, turn .. ':e', ARGV[4], turn .. ':b', BAND, turn .. ':u', USER, turn .. ':o', ARGV[7],
  turn .. ':r', NOW)
if USER ~= '' then redis.call('HINCRBY', KEYS[8], USER, 1) end

local function record(word, text)
  redis.call('XADD', LOG, 'MAXLEN', '~', 200000, '*', 'c', NAME, 's', session, 't', turn,
    'ms', NOW, 'd', 0, 'i', ARGV[16], 'w', word, 'x', text)
end
if fresh then record('NOTE', 'session of ' .. NAME .. ' title ' .. (ARGV[17] ~= '' and ARGV[17] or state[5] or '-')) end
record('RECEIVED', NAME .. '/' .. turn .. ' ' .. ARGV[18])

local outcome, place = 'RUN', 0
if CONTROL then
  redis.call('HINCRBY', CONV, 'ctl', 1)
  redis.call('ZADD', ACTIVE, NOW, NAME .. '\31' .. turn)
  redis.call('XADD', KEYS[9], '*', 'c', NAME, 't', turn, 'h', 0, 'e', ARGV[4])
elseif state[1] then
  outcome, place = 'WAIT', redis.call('RPUSH', MAILBOX, turn)
  record('NOTE', 'waits, place ' .. place)
else
  local stream = BAND == 'h' and KEYS[9] or BAND == 'n' and KEYS[10] or KEYS[11]
  local id = redis.call('XADD', stream, '*', 'c', NAME, 't', turn, 'h', 0, 'e', ARGV[4])
  redis.call('HSET', CONV, 'cur', turn, 'at', stream .. '|' .. id)
  redis.call('ZADD', ACTIVE, NOW, NAME)
end
local id = redis.call('XADD', EVENTS, 'MAXLEN', '~', 4000, '*', 't', turn, 'k',
  outcome == 'RUN' and 'accepted' or 'queued', 'n', place)
redis.call('EXPIRE', EVENTS, 3600)
redis.call('PUBLISH', ARGV[2], 'accepted')
return { outcome, turn, place, NOW, id }
