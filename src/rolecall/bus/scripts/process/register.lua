-- Keep a process in the registry. The names of those that left or fell silent stay for the
-- sweep, which tidies up after them.
-- Returns server ms.
-- keys: registry state
-- args: process value lasts
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if VALUE == '' then
  redis.call('DEL', STATE)
else
  redis.call('ZADD', REGISTRY, now, PROCESS)
  redis.call('SET', STATE, VALUE, 'PX', LASTS)
end
return now
