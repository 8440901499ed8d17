-- Remove the empty streams and the consumers of a process that is gone. A consumer that still holds entries stays, as
-- they would be lost.
--   alive: its sign of life; streams: its own ones, then those it shared; own: the number of its own ones
-- Returns how many of its streams and consumers still hold entries, or -1 if the process is alive.
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
