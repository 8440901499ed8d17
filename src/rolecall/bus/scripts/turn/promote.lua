-- Wake a turn that is deferred or held and due. A held turn begins with all its parts. Any number of processes may run
-- this.
--   wake_stream: the one that the caller read in the journal; early: '1' wakes the turn before its time
--   expected: what the clock should show; the earlier time counts
-- Returns OK | EARLY | MOVED (the journal names another stream now) | GONE.
-- include: clock state
-- keys: deferred conversation journal wake_stream
-- args: name early expected
local due = redis.call('ZSCORE', DEFERRED, NAME)
if not due then return 'GONE' end
if tonumber(due) > math.min(NOW, tonumber(EXPECTED)) and EARLY ~= '1' then return 'EARLY' end
local stream, hop, deferred, quiet =
  unpack(redis.call('HMGET', JOURNAL, 'defer:s', 'defer:h', 'defer:e', 'defer:q'))
local running, at = unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at'))
if stream and stream ~= WAKE_STREAM then return 'MOVED' end
redis.call('ZREM', DEFERRED, NAME)
if not stream or at ~= SLEEPING then return 'GONE' end
local first, joined, stepped = unpack(redis.call('HMGET', JOURNAL, running .. ':e', running .. ':x', running .. ':s'))
local envelope = deferred or first
local parts = envelope == first and joined or ''
local fields = { 'c', NAME, 't', running, 'h', hop, 'e', envelope, 'x', parts }
if stepped then table.insert(fields, 's') table.insert(fields, 1) end
if quiet then table.insert(fields, 'q') table.insert(fields, quiet) end
local id = redis.call('XADD', WAKE_STREAM, '*', unpack(fields))
redis.call('HSET', CONVERSATION, 'at', place(WAKE_STREAM, id))
redis.call('HDEL', JOURNAL, 'defer:s', 'defer:h', 'defer:e', 'defer:q')
return 'OK'
