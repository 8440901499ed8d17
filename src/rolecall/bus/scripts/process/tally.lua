-- Count one more, within a stretch of time that begins with the first.
-- Returns the count.
-- keys: counter
-- args: window
local count = redis.call('INCR', COUNTER)
if count == 1 then redis.call('PEXPIRE', COUNTER, WINDOW) end
return count
