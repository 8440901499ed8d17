-- Prelude: one entry of a stream, which the calling process may hold.
-- keys: stream
-- args: entry process
-- How often the entry was delivered, or nil unless the process holds it.
local function deliveries()
  local rows = redis.pcall('XPENDING', STREAM, 'g', ENTRY, ENTRY, 1, PROCESS)
  if rows.err or #rows == 0 then return nil end
  return rows[1][4]
end

local function drop()
  redis.call('XACK', STREAM, 'g', ENTRY)
  redis.call('XDEL', STREAM, ENTRY)
end

