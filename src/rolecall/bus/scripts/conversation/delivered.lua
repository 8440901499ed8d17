-- Say that an entry of an outbox is delivered, with what there is to tell of it.
-- Returns 1, or 0 when it was said before: nothing is written.
-- include: state turn
-- args: received records*
if redis.call('XACK', STREAM, 'g', ENTRY) == 0 then return 0 end
redis.call('XDEL', STREAM, ENTRY)
records(RECORDS, RECEIVED ~= '0' and RECEIVED or nil)
return 1
