-- Say that an entry of an outbox is delivered, with what there is to tell of it.
-- KEYS lib/guard with 1 the outbox  ARGV lib/guard with 1 the entry, 6 ms the turn was received at, 0 if unknown,
--      then records
-- Returns 1, or 0 when it was said before: nothing is written.
-- include: guard
if redis.call('XACK', SRC, 'g', ID) == 0 then return 0 end
redis.call('XDEL', SRC, ID)
records(7, ARGV[6] ~= '0' and ARGV[6] or nil)
return 1
