-- Check that a conversation's running turn has its one entry, and write it again from the journal if not.
-- Returns OK | IDLE | MOVED | REPAIRED. Defence in depth: REPAIRED has never to happen.
-- include: state
-- keys: conversation journal active deferred stream first_high first_normal first_low
-- args: name at
local state = redis.call('HMGET', CONVERSATION, 'cur', 'at')
if not state[1] then
  redis.call('ZREM', ACTIVE, NAME)
  return 'IDLE'
end
if (state[2] or '') ~= AT then return 'MOVED' end
if state[2] == SLEEPING then
  if redis.call('ZSCORE', DEFERRED, NAME) then return 'OK' end
elseif state[2] then
  local id = string.match(state[2], '|([^|]*)$')
  if #redis.call('XRANGE', STREAM, id, id) == 1 then return 'OK' end
end
local job = redis.call('HMGET', JOURNAL, state[1] .. ':e', state[1] .. ':x', state[1] .. ':b')
if not job[1] then return 'IDLE' end
local stream = job[3] == 'h' and FIRST_HIGH or job[3] == 'l' and FIRST_LOW or FIRST_NORMAL
local id = redis.call('XADD', stream, '*', 'c', NAME, 't', state[1], 'h', 0, 'e', job[1], 'x', job[2] or '')
redis.call('HSET', CONVERSATION, 'at', stream .. '|' .. id)
return 'REPAIRED'
