-- Count one more, within a stretch of time that begins with the first.
-- KEYS 1 counter  ARGV 1 ms until it begins anew
-- Returns the count.
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count
