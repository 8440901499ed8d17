-- Check that a running turn or a call has its one entry, and write a missing one again from the journal.
--   turn: '' for the running turn of the conversation, else a call
--   stream: the one in `seen`; seen: the place of the turn's entry as the caller read it
-- Returns OK | IDLE | MOVED | REPAIRED. REPAIRED should never happen; it is defence in depth.
-- include: clock state sleep
-- keys: conversation journal active deferred stream first_high first_normal first_low
-- args: name turn seen
local running, at = unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at'))
if TURN ~= '' then
  at = redis.call('HGET', JOURNAL, TURN .. ':a')
  running = at and TURN
end
if not running then
  redis.call('ZREM', ACTIVE, TURN == '' and NAME or member(NAME, TURN))
  return 'IDLE'
end
if (at or '') ~= SEEN then return 'MOVED' end
if at == SLEEPING then
  if redis.call('ZSCORE', DEFERRED, member(NAME, running)) then return 'OK' end
elseif at then
  local id = string.match(at, '|([^|]*)$')
  if #redis.call('XRANGE', STREAM, id, id) == 1 then return 'OK' end
end
local envelope, parts, band, stepped =
  unpack(redis.call('HMGET', JOURNAL, running .. ':e', running .. ':x', running .. ':b', running .. ':s'))
if not envelope then return 'IDLE' end
rouse(running)
local stream = band == 'h' and FIRST_HIGH or band == 'l' and FIRST_LOW or FIRST_NORMAL
if TURN ~= '' then stream = band end
local fields = { 'c', NAME, 't', running, 'h', 0, 'e', envelope, 'x', parts or '' }
if stepped then fields[11], fields[12] = 's', stepped end
local id = redis.call('XADD', stream, '*', unpack(fields))
put_at(running, place(stream, id))
return 'REPAIRED'
