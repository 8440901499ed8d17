-- Acknowledge that an entry of an outbox was delivered, with its log records.
--   received: server ms at which the turn was received, 0 if unknown
-- Returns 1, or 0 if it was acknowledged before; then nothing is written.
-- include: clock state entry trace turn
-- args: received records*
redis.call('XACK', STREAM, 'g', ENTRY) -- versions before read it through the group
if redis.call('XDEL', STREAM, ENTRY) == 0 then return 0 end
records(RECORDS, received_at(RECEIVED))
flush()
return 1
