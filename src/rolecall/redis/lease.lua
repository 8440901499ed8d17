-- Take or keep a named lease; with no time to live, give it up.
-- Returns 1 when the caller holds it afterwards, else 0.
-- keys: lease
-- args: token lasts
local holder = redis.call('GET', LEASE)
if holder and holder ~= TOKEN then return 0 end
if LASTS == '0' then
  redis.call('DEL', LEASE)
  return 0
end
-- Kept without SET, which a server at its memory limit would refuse.
if holder then redis.call('PEXPIRE', LEASE, LASTS)
else redis.call('SET', LEASE, TOKEN, 'PX', LASTS) end
return 1
