-- Extend a hold that a member of a sorted set has until its score, in ms of the server's clock.
--   lasts: ms from now
-- Returns 1 if the member was there, else 0 and nothing is written.
-- keys: holds
-- args: member lasts
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
return redis.call('ZADD', HOLDS, 'XX', 'CH', now + tonumber(LASTS), MEMBER)
