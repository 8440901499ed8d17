-- Tell a conversation something that nobody asked for: no turn, no mailbox, just once.
-- Returns OK | DUP | CONFLICT (the same key with another text); the last two write nothing.
-- include: state turn
-- keys: idempotency outbox history
-- args: digest repeat_ms payload remembered history_limit keep instance said
local known = redis.call('GET', IDEMPOTENCY)
if known then return known == '|' .. DIGEST and 'DUP' or 'CONFLICT' end
redis.call('SET', IDEMPOTENCY, '|' .. DIGEST, 'PX', REPEAT_MS)
redis.call('XADD', OUTBOX, '*', 'c', NAME, 't', '', 'e', PAYLOAD)
if REMEMBERED ~= '' then
  redis.call('RPUSH', HISTORY, REMEMBERED)
  redis.call('LTRIM', HISTORY, -HISTORY_LIMIT, -1)
end
if not state[3] then
  state[3] = NOW
  redis.call('HSET', CONVERSATION, 'session', NOW, 'last', NOW)
  record('', 0, INSTANCE, 'NOTE', 'session of ' .. NAME .. ' title -')
end
if not state[1] then
  for _, key in ipairs({ CONVERSATION, HISTORY, PREFERENCES }) do redis.call('PEXPIRE', key, KEEP) end
end
record('', 0, INSTANCE, 'NOTE', 'notice: ' .. SAID)
return 'OK'
