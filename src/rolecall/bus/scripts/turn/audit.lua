-- Check that a conversation's running turn has its one entry, and write a missing one again from the journal.
--   stream: the one in `seen`; seen: the conversation's `at` as the caller read it
-- Returns OK | IDLE | MOVED | REPAIRED. REPAIRED should never happen; it is defence in depth.
-- include: state
-- keys: conversation journal active deferred stream first_high first_normal first_low
-- args: name seen
local running, at = unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at'))
if not running then
  redis.call('ZREM', ACTIVE, NAME)
  return 'IDLE'
end
if (at or '') ~= SEEN then return 'MOVED' end
if at == SLEEPING then
  if redis.call('ZSCORE', DEFERRED, NAME) then return 'OK' end
elseif at then
  local id = string.match(at, '|([^|]*)$')
  if #redis.call('XRANGE', STREAM, id, id) == 1 then return 'OK' end
end
local envelope, parts, band = unpack(redis.call('HMGET', JOURNAL, running .. ':e', running .. ':x', running .. ':b'))
if not envelope then return 'IDLE' end
local stream = band == 'h' and FIRST_HIGH or band == 'l' and FIRST_LOW or FIRST_NORMAL
local id = redis.call('XADD', stream, '*', 'c', NAME, 't', running, 'h', 0, 'e', envelope, 'x', parts or '')
redis.call('HSET', CONVERSATION, 'at', place(stream, id))
return 'REPAIRED'
