-- Keep the leases this process holds in a shard, and its sign of life. Never takes one back from a new holder.
-- Returns the indexes (from 1) of the entries that are not held any more.
-- keys: alive streams*
-- args: process lease entries*
local lost = {}
for i, stream in ipairs(STREAMS) do
  local id = ENTRIES[i]
  local row = redis.pcall('XPENDING', stream, 'g', id, id, 1, PROCESS)
  if row.err or #row == 0 then lost[#lost + 1] = i
  else redis.call('XCLAIM', stream, 'g', PROCESS, 0, id, 'JUSTID') end
end
-- Last, and never an error: a server at its memory limit keeps leases all the same.
if redis.call('PEXPIRE', ALIVE, LEASE) == 0 then redis.pcall('SET', ALIVE, '1', 'PX', LEASE) end
return lost
