-- Write log records of a turn outside its settling.
-- KEYS lib/guard  ARGV lib/guard, 6 ms the turn was received at, 0 if unknown, then records
-- Returns OK.
-- include: guard
records(7, ARGV[6] ~= '0' and ARGV[6] or nil)
return 'OK'
