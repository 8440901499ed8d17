-- Move one entry of a process that is gone to the stream of its role.
-- KEYS 1 the process's own stream · 2 destination · 3 conversation · 4 sign of life of the process
-- ARGV 1 entry id · 2 turn
-- Returns OK | ALIVE | GONE.
if redis.call('EXISTS', KEYS[4]) == 1 then return 'ALIVE' end
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then return 'GONE' end
redis.pcall('XACK', KEYS[1], 'g', ARGV[1])
redis.call('XDEL', KEYS[1], ARGV[1])
local id = redis.call('XADD', KEYS[2], '*', unpack(entry[2]))
local state = redis.call('HMGET', KEYS[3], 'cur', 'at')
if state[1] == ARGV[2] and state[2] == KEYS[1] .. '|' .. ARGV[1] then
  redis.call('HSET', KEYS[3], 'at', KEYS[2] .. '|' .. id)
end
return 'OK'
