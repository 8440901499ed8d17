-- Wake a deferred turn that is due, or one whose hold is over: that one begins with all its parts.
-- KEYS 1 deferred · 2 conversation · 3 journal · 4 stream noted at its defer
-- ARGV 1 conversation's name · 2 '1' wakes it before its time
-- Returns OK | EARLY | MOVED (another stream is noted by now) | GONE. Any number of processes may run it.
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due then return 'GONE' end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if tonumber(due) > now and ARGV[2] ~= '1' then return 'EARLY' end
local note = redis.call('HMGET', KEYS[3], 'defer:s', 'defer:h', 'defer:e')
local state = redis.call('HMGET', KEYS[2], 'cur', 'at')
if note[1] and note[1] ~= KEYS[4] then return 'MOVED' end
redis.call('ZREM', KEYS[1], ARGV[1])
if not note[1] or state[2] ~= 'z' then return 'GONE' end
local job = redis.call('HMGET', KEYS[3], state[1] .. ':e', state[1] .. ':x')
local envelope = note[3] or job[1]
local parts = envelope == job[1] and job[2] or ''
local id = redis.call('XADD', KEYS[4], '*', 'c', ARGV[1], 't', state[1], 'h', note[2], 'e', envelope, 'x', parts)
redis.call('HSET', KEYS[2], 'at', KEYS[4] .. '|' .. id)
redis.call('HDEL', KEYS[3], 'defer:s', 'defer:h', 'defer:e')
return 'OK'
