-- Let the entries that a dead process holds be taken over at once. Their deliveries count.
--   alive: its sign of life; released: the idle time in ms that says so
-- Returns how many entries there were.
-- keys: alive streams*
-- args: process released
redis.call('DEL', ALIVE)
local found = 0
for _, stream in ipairs(STREAMS) do
  local rows = redis.pcall('XPENDING', stream, 'g', '-', '+', 10000, PROCESS)
  for _, row in ipairs(rows.err and {} or rows) do
    redis.call('XCLAIM', stream, 'g', PROCESS, 0, row[1], 'IDLE', RELEASED, 'JUSTID')
    found = found + 1
  end
end
return found
