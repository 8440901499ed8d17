-- Take one delivery of an entry back: its former holder lost the lease, but is alive. Whoever holds the entry keeps it.
-- Returns OK | GONE.
-- keys: stream
-- args: entry
local rows = redis.pcall('XPENDING', STREAM, 'g', ENTRY, ENTRY, 1)
if rows.err or #rows == 0 then return 'GONE' end
local _, holder, idle, count = unpack(rows[1])
if count > 1 then
  redis.call('XCLAIM', STREAM, 'g', holder, 0, ENTRY, 'IDLE', idle, 'RETRYCOUNT', count - 1, 'JUSTID')
end
return 'OK'
