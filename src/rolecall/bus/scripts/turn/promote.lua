-- Wake a deferred turn that is due, or one whose hold is over: that one begins with all its parts.
-- Returns OK | EARLY | MOVED (another stream is noted by now) | GONE. Any number of processes may run it.
-- include: state
-- keys: deferred conversation journal wake_stream
-- args: name early
local due = redis.call('ZSCORE', DEFERRED, NAME)
if not due then return 'GONE' end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if tonumber(due) > now and EARLY ~= '1' then return 'EARLY' end
local note = redis.call('HMGET', JOURNAL, 'defer:s', 'defer:h', 'defer:e')
local state = redis.call('HMGET', CONVERSATION, 'cur', 'at')
if note[1] and note[1] ~= WAKE_STREAM then return 'MOVED' end
redis.call('ZREM', DEFERRED, NAME)
if not note[1] or state[2] ~= SLEEPING then return 'GONE' end
local job = redis.call('HMGET', JOURNAL, state[1] .. ':e', state[1] .. ':x')
local envelope = note[3] or job[1]
local parts = envelope == job[1] and job[2] or ''
local id = redis.call('XADD', WAKE_STREAM, '*', 'c', NAME, 't', state[1], 'h', note[2], 'e', envelope, 'x', parts)
redis.call('HSET', CONVERSATION, 'at', WAKE_STREAM .. '|' .. id)
redis.call('HDEL', JOURNAL, 'defer:s', 'defer:h', 'defer:e')
return 'OK'
