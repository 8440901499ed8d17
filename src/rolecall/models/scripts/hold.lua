-- Give a sign of life of a call in flight.
-- KEYS 1 calls in flight  ARGV 1 call · 2 ms until the next one
-- Returns 1 if the call was known.
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
return redis.call('ZADD', KEYS[1], 'XX', 'CH', NOW + tonumber(ARGV[2]), ARGV[1])
