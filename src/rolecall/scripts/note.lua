-- Write log records of a turn outside its settling.
-- KEYS lib/guard  ARGV lib/guard, then records
-- Returns OK.
-- include: guard
records(6)
return 'OK'
