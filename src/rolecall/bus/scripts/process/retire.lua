-- Remove what a process that is gone leaves: its own streams once empty, and its consumers, but never one that still
-- holds entries: those would be lost.
-- KEYS 1 its sign of life, then its own streams, then the streams it shared  ARGV 1 process · 2 number of its own streams
-- Returns how many of its streams and consumers still hold entries, to be moved or taken over first; -1 = it lives.
if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
local left = 0
for k = 2, #KEYS do
  local stream = KEYS[k]
  if k <= 1 + tonumber(ARGV[2]) then
    if redis.call('XLEN', stream) == 0 then redis.call('DEL', stream) else left = left + 1 end
  else
    local row = redis.pcall('XPENDING', stream, 'g', '-', '+', 1, ARGV[1])
    if not row.err then
      if #row == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, 'g', ARGV[1]) else left = left + 1 end
    end
  end
end
return left
