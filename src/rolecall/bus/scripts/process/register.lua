-- Keep a process in the registry. The names of processes that left or died stay for the sweep, which cleans up after
-- them.
--   state: key of the process; value: its state as JSON, or '' if it leaves; lasts: ms
-- Returns server ms.
-- include: clock
-- keys: registry state
-- args: process value lasts
if VALUE == '' then
  redis.call('DEL', STATE)
else
  redis.call('ZADD', REGISTRY, NOW, PROCESS)
  redis.call('SET', STATE, VALUE, 'PX', LASTS)
end
return NOW
