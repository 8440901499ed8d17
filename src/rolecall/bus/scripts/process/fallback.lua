-- Move one entry of a process that is gone to the stream of its role.
-- Returns OK | ALIVE | GONE.
-- keys: stream destination conversation alive
-- args: entry turn
if redis.call('EXISTS', ALIVE) == 1 then return 'ALIVE' end
local entry = redis.call('XRANGE', STREAM, ENTRY, ENTRY)[1]
if not entry then return 'GONE' end
redis.pcall('XACK', STREAM, 'g', ENTRY)
redis.call('XDEL', STREAM, ENTRY)
local id = redis.call('XADD', DESTINATION, '*', unpack(entry[2]))
local state = redis.call('HMGET', CONVERSATION, 'cur', 'at')
if state[1] == TURN and state[2] == STREAM .. '|' .. ENTRY then
  redis.call('HSET', CONVERSATION, 'at', DESTINATION .. '|' .. id)
end
return 'OK'
