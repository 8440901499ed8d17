-- Begin steps that the handler will wait for: calls of other roles, timers and questions. A step that has begun stays
-- as it is.
--   step_keys, definitions: one of each per step, the latter as JSON; delays: ms until it is due, or ''
--   streams: where a call goes, or `steps` for another step; envelopes: of a call, or ''; said: a call's text for the log
--   asked: a question as JSON for front ends and followers, or ''; root: the turn whose user is asked
--   user: whose calls they are; instance: of the handler; outbox_stem: names outboxes, without the front end
-- Returns {OK|FENCED|STALE|CONTROL|FULL, the server's clock in ms}. CONTROL: a control turn cannot wait. FULL: over the
-- limit. Only OK writes anything.
-- include: clock state entry trace turn step
-- keys: active streams*
-- args: user instance root outbox_stem step_keys* definitions* delays* envelopes* said* asked*
if CONTROL then return { 'CONTROL', NOW } end
local verdict = guard()
if verdict ~= 'OK' then return { verdict, NOW } end

local function call(i)
  local number = redis.call('HINCRBY', JOURNAL, TURN .. ':c', 1)
  local id, stream = TURN .. '.' .. number, STREAMS[i]
  local entry = redis.call('XADD', stream, '*', 'c', NAME, 't', id, 'h', 0, 'e', ENVELOPES[i], 'r', NOW)
  redis.call('HSET', JOURNAL, id .. ':e', ENVELOPES[i], id .. ':b', stream, id .. ':u', USER, id .. ':r', NOW,
    id .. ':k', STEP_KEYS[i], id .. ':a', place(stream, entry))
  redis.call('ZADD', ACTIVE, NOW, member(NAME, id))
  redis.call('HSET', STEPS, 'c' .. STEP_KEYS[i], id)
  record(id, 0, INSTANCE, 'RECEIVED', NAME .. '/' .. id .. ' ' .. SAID[i], NOW)
end

local function ask(i)
  local front = redis.call('HGET', JOURNAL, ROOT .. ':o')
  if front and front ~= '' then redis.call('XADD', OUTBOX_STEM .. front, '*', 'c', NAME, 't', ROOT, 'e', ASKED[i]) end
  event(ROOT, 'asked', 'x', ASKED[i])
  local keep = tonumber(DELAYS[i]) + 3600000
  if redis.call('PTTL', EVENTS) < keep then redis.call('PEXPIRE', EVENTS, keep) end
  record(TURN, 0, INSTANCE, 'ASKED', SAID[i])
end

local new = store(STEP_KEYS, DEFINITIONS)
if not new then return { 'FULL', NOW } end
for _, i in ipairs(new) do
  if DELAYS[i] ~= '' then redis.call('HSET', STEPS, 'd' .. STEP_KEYS[i], NOW + tonumber(DELAYS[i])) end
  if ENVELOPES[i] ~= '' then call(i) end
  if ASKED[i] ~= '' then ask(i) end
end
flush()
return { 'OK', NOW }
