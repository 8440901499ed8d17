-- Give up the entry of a handler that its worker did not survive. Any process may take it at once, and that delivery is
-- its last one, so that nothing else on its last delivery is handled at the same time.
--   lease: ms
-- Returns OK | FENCED.
-- include: entry
-- args: lease max_deliveries
local count = deliveries()
if not count then return 'FENCED' end
redis.call('XCLAIM', STREAM, 'g', PROCESS, 0, ENTRY, 'IDLE', LEASE + 1,
  'RETRYCOUNT', math.max(count, MAX_DELIVERIES - 1), 'JUSTID')
return 'OK'
