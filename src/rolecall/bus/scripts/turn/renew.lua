-- Keep the leases this process holds in a shard, and its sign of life. Never takes one back from a new holder.
-- KEYS 1 sign of life, then one stream per entry  ARGV 1 process · 2 ms the sign lasts, then one entry id per stream
-- Returns the indexes (from 1) of the entries that are not held any more.
local lost = {}
for i = 2, #KEYS do
  local id = ARGV[i + 1]
  local row = redis.pcall('XPENDING', KEYS[i], 'g', id, id, 1, ARGV[1])
  if row.err or #row == 0 then lost[#lost + 1] = i - 1
  else redis.call('XCLAIM', KEYS[i], 'g', ARGV[1], 0, id, 'JUSTID') end
end
-- Last, and never an error: a server at its memory limit keeps leases all the same.
if redis.call('PEXPIRE', KEYS[1], ARGV[2]) == 0 then redis.pcall('SET', KEYS[1], '1', 'PX', ARGV[2]) end
return lost
