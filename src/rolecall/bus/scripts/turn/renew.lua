-- Renew the leases that this process holds in a shard, and its sign of life. A lease that another process took is not
-- taken back.
--   streams, entries: one of each per lease; lease: ms
-- Returns server ms, then the indexes, from 1, of the leases that were lost.
-- include: clock
-- keys: alive streams*
-- args: process lease entries*
local reply = {NOW}
for i, stream in ipairs(STREAMS) do
  local id = ENTRIES[i]
  local row = redis.pcall('XPENDING', stream, 'g', id, id, 1, PROCESS)
  if row.err or #row == 0 then reply[#reply + 1] = i
  else redis.call('XCLAIM', stream, 'g', PROCESS, 0, id, 'JUSTID') end
end
-- Last, and without an error: leases are renewed even when the server is at its memory limit.
if redis.call('PEXPIRE', ALIVE, LEASE) == 0 then redis.pcall('SET', ALIVE, '1', 'PX', LEASE) end
return reply
