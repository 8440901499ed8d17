-- Move one entry from the stream of a process that is gone to the stream of its role.
--   stream: of the process; alive: its sign of life
-- Returns OK | ALIVE | GONE.
-- include: state again
-- keys: stream destination conversation journal alive
-- args: entry turn
if redis.call('EXISTS', ALIVE) == 1 then return 'ALIVE' end
local found = redis.call('XRANGE', STREAM, ENTRY, ENTRY)[1]
if not found then return 'GONE' end
redis.pcall('XACK', STREAM, 'g', ENTRY)
redis.call('XDEL', STREAM, ENTRY)
local _, fields = unpack(found)
mark_stepped(fields)
local id = redis.call('XADD', DESTINATION, '*', unpack(fields))
written_again(DESTINATION, id)
return 'OK'
