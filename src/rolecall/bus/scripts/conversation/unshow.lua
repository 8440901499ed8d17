-- Forget an outside message that showed a part of a turn, if it is still the one remembered.
-- KEYS 1 what shows the turn · 2 turn of the outside message  ARGV 1 part · 2 outside message
-- Returns 1 when it was, else 0.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
