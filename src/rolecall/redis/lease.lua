-- Win or renew a leader election; with `lasts` 0, resign.
--   token: of the candidate; lasts: ms
-- Returns 1 if the candidate leads afterwards, else 0.
-- keys: lease
-- args: token lasts
local holder = redis.call('GET', LEASE)
if holder and holder ~= TOKEN then
  -- Holders renew it long before: the server's clock stepped back, and a dead holder would keep the lead for as long.
  if LASTS ~= '0' and redis.call('PTTL', LEASE) > 2 * LASTS then redis.call('PEXPIRE', LEASE, LASTS) end
  return 0
end
if LASTS == '0' then
  redis.call('DEL', LEASE)
  return 0
end
-- A server at its memory limit refuses SET but not PEXPIRE.
if holder then redis.call('PEXPIRE', LEASE, LASTS)
else redis.call('SET', LEASE, TOKEN, 'PX', LASTS) end
return 1
