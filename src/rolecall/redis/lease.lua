-- Take or keep a named lease; with no time to live, give it up.
-- KEYS 1 lease  ARGV 1 token of the caller · 2 ms it lasts, 0 gives it up
-- Returns 1 when the caller holds it afterwards, else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
-- Kept without SET, which a server at its memory limit would refuse.
if holder then redis.call('PEXPIRE', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
