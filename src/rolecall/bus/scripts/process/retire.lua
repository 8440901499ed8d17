-- Remove what a process that is gone leaves: its own streams once empty, and its consumers, but never one that still
-- holds entries: those would be lost.
-- Returns how many of its streams and consumers still hold entries, to be moved or taken over first; -1 = it lives.
-- keys: alive streams*
-- args: process own
if redis.call('EXISTS', ALIVE) == 1 then return -1 end
local left = 0
for k, stream in ipairs(STREAMS) do
  if k <= tonumber(OWN) then
    if redis.call('XLEN', stream) == 0 then redis.call('DEL', stream) else left = left + 1 end
  else
    local row = redis.pcall('XPENDING', stream, 'g', '-', '+', 1, PROCESS)
    if not row.err then
      if #row == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, 'g', PROCESS) else left = left + 1 end
    end
  end
end
return left
