-- Write log records of a turn outside its settling.
-- Returns OK.
-- include: state turn
-- args: received records*
records(RECORDS, RECEIVED ~= '0' and RECEIVED or nil)
return 'OK'
