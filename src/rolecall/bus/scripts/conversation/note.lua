-- Write log records of a turn without settling it.
--   received: server ms at which the turn was received, 0 if unknown
-- Returns OK.
-- include: clock state entry turn
-- args: received records*
records(RECORDS, RECEIVED ~= '0' and RECEIVED or nil)
return 'OK'
