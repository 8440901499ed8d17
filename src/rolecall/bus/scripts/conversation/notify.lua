-- Tell a conversation something that nobody asked for: no turn, no mailbox, just once.
-- KEYS lib/guard with 1 any of the shard · 7 idempotency · 8 outbox · 9 history
-- ARGV lib/guard with 4 '' · 6 digest of the text · 7 ms a repeat is known · 8 outbox entry as JSON
--      · 9 remembered message as JSON, or '' · 10 history limit · 11 ms a conversation is kept · 12 instance
--      · 13 text for the log
-- Returns OK | DUP | CONFLICT (the same key with another text); the last two write nothing.
-- include: guard
local known = redis.call('GET', KEYS[7])
if known then return known == '|' .. ARGV[6] and 'DUP' or 'CONFLICT' end
redis.call('SET', KEYS[7], '|' .. ARGV[6], 'PX', ARGV[7])
redis.call('XADD', KEYS[8], '*', 'c', NAME, 't', '', 'e', ARGV[8])
if ARGV[9] ~= '' then
  redis.call('RPUSH', KEYS[9], ARGV[9])
  redis.call('LTRIM', KEYS[9], -ARGV[10], -1)
end
if not state[3] then
  state[3] = NOW
  redis.call('HSET', CONV, 'session', NOW, 'last', NOW)
  record('', 0, ARGV[12], 'NOTE', 'session of ' .. NAME .. ' title -')
end
if not state[1] then
  for _, key in ipairs({ CONV, KEYS[9], PREFS }) do redis.call('PEXPIRE', key, ARGV[11]) end
end
record('', 0, ARGV[12], 'NOTE', 'notice: ' .. ARGV[13])
return 'OK'
