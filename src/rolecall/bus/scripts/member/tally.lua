-- Count one more within a window of `window` ms that starts with the first count.
-- Returns the count.
-- keys: counter
-- args: window
local count = redis.call('INCR', COUNTER)
if count == 1 then redis.call('PEXPIRE', COUNTER, WINDOW) end
return count
