-- Extend the hold that a member of a sorted set has until its score, in ms of the server's clock.
--   lasts: ms from now
-- Returns 1 if the member was there, else 0 and nothing is written.
-- include: clock
-- keys: holds
-- args: member lasts
return redis.call('ZADD', HOLDS, 'XX', 'CH', NOW + tonumber(LASTS), MEMBER)
