-- Keep a process in the registry. The names of those that left or fell silent stay for the
-- sweep, which tidies up after them.
-- KEYS 1 registry · 2 this process's entry  ARGV 1 process · 2 its state as JSON, '' = it leaves · 3 ms it lasts
-- Returns server ms.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if ARGV[2] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('ZADD', KEYS[1], now, ARGV[1])
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
end
return now
