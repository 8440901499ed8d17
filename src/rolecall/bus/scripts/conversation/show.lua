-- Remember which outside message shows a part of a turn, unless one is remembered already.
-- KEYS 1 what shows the turn · 2 turn of the outside message  ARGV 1 part · 2 outside message · 3 turn · 4 ms to keep
-- Returns the outside message that stands.
local stands = redis.call('HGET', KEYS[1], ARGV[1])
if stands and stands ~= ARGV[2] then return stands end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return ARGV[2]
