-- Check that a conversation's running turn has its one entry, and write it again from the journal if not.
-- KEYS 1 conversation · 2 journal · 3 active · 4 deferred · 5 the stream named by `at` · 6 7 8 first role's h n l
-- ARGV 1 conversation's name · 2 `at` as the caller read it
-- Returns OK | IDLE | MOVED | REPAIRED. Defence in depth: REPAIRED has never to happen.
local state = redis.call('HMGET', KEYS[1], 'cur', 'at')
if not state[1] then
  redis.call('ZREM', KEYS[3], ARGV[1])
  return 'IDLE'
end
if (state[2] or '') ~= ARGV[2] then return 'MOVED' end
if state[2] == 'z' then
  if redis.call('ZSCORE', KEYS[4], ARGV[1]) then return 'OK' end
elseif state[2] then
  local id = string.match(state[2], '|([^|]*)$')
  if #redis.call('XRANGE', KEYS[5], id, id) == 1 then return 'OK' end
end
local job = redis.call('HMGET', KEYS[2], state[1] .. ':e', state[1] .. ':x', state[1] .. ':b')
if not job[1] then return 'IDLE' end
local stream = job[3] == 'h' and KEYS[6] or job[3] == 'l' and KEYS[8] or KEYS[7]
local id = redis.call('XADD', stream, '*', 'c', ARGV[1], 't', state[1], 'h', 0, 'e', job[1], 'x', job[2] or '')
redis.call('HSET', KEYS[1], 'at', stream .. '|' .. id)
return 'REPAIRED'
