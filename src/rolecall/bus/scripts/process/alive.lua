-- Renew a process's sign of life in shards of one server, where it holds nothing.
--   lease: ms
-- Returns server ms.
-- include: clock
-- keys: alive*
-- args: lease
for _, key in ipairs(ALIVE) do
  if redis.call('PEXPIRE', key, LEASE) == 0 then redis.pcall('SET', key, '1', 'PX', LEASE) end
end
return NOW
