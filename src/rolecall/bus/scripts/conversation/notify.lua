-- Send a conversation a notice, once, without a turn: outbox or event, history and log.
--   digest: of the text; repeat_ms: how long a repeat is recognized; payload: the outbox entry as JSON
--   remembered: message for the history as JSON, or ''; said: the notice as the log shows it
--   keep: ms that an idle conversation is kept
--   text: the notice for followers of a front end without an outbox, '' if its outbox delivers
-- Returns OK | DUP | CONFLICT (the same key with another text); the last two write nothing.
-- Confirmed by replicas.
-- include: clock state entry trace turn
-- keys: idempotency outbox history
-- args: digest repeat_ms payload remembered history_limit keep instance said text
local known = redis.call('GET', IDEMPOTENCY)
if known then return known == '|' .. DIGEST and 'DUP' or 'CONFLICT' end
redis.call('SET', IDEMPOTENCY, '|' .. DIGEST, 'PX', REPEAT_MS)
if TEXT == '' then redis.call('XADD', OUTBOX, '*', 'c', NAME, 't', '', 'e', PAYLOAD)
else
  event('', 'notice', 'x', TEXT)
  redis.call('HSET', CONVERSATION, 'told', NOW)
  if redis.call('PTTL', EVENTS) < 3600000 then redis.call('EXPIRE', EVENTS, 3600) end
  redis.call('DEL', OUTBOX) -- what earlier versions wrote there, nobody reads
end
if REMEMBERED ~= '' then
  redis.call('RPUSH', HISTORY, REMEMBERED)
  redis.call('LTRIM', HISTORY, -HISTORY_LIMIT, -1)
end
if not session then
  session = NOW
  redis.call('HSET', CONVERSATION, 'session', NOW, 'last', NOW)
  record('', 0, INSTANCE, 'NOTE', 'session of ' .. NAME .. ' title -')
end
if not running then
  for _, key in ipairs({ CONVERSATION, HISTORY, PREFERENCES }) do redis.call('PEXPIRE', key, KEEP) end
end
record('', 0, INSTANCE, 'NOTE', 'notice: ' .. SAID)
flush()
return 'OK'
