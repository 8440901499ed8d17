-- Return an entry that was taken but not begun. Any process may take it at once, and this delivery does not count.
--   lease: ms
-- Returns OK | FENCED.
-- include: state entry again
-- keys: conversation journal
-- args: lease turn
local count = deliveries()
if not count then return 'FENCED' end
local found = redis.call('XRANGE', STREAM, ENTRY, ENTRY)[1]
-- An entry with earlier deliveries stays in the pending list, which holds their number.
if count > 1 and found then
  redis.call('XCLAIM', STREAM, 'g', PROCESS, 0, ENTRY, 'IDLE', LEASE + 1, 'RETRYCOUNT', count - 1, 'JUSTID')
  return 'OK'
end
drop()
if not found then return 'OK' end
local _, fields = unpack(found)
mark_stepped(fields)
local id = redis.call('XADD', STREAM, '*', unpack(fields))
written_again(STREAM, id)
return 'OK'
