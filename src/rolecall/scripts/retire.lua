-- Remove the consumers of a process that is gone, but never one that still holds entries: those would be lost.
-- KEYS streams  ARGV 1 process
-- Returns how many of its consumers still hold entries, to be taken over first.
local left = 0
for _, stream in ipairs(KEYS) do
  local row = redis.pcall('XPENDING', stream, 'g', '-', '+', 1, ARGV[1])
  if not row.err then
    if #row == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, 'g', ARGV[1]) else left = left + 1 end
  end
end
return left
