-- Write log records of a turn without settling it.
--   received: server ms at which the turn was received, 0 if unknown
-- Returns OK.
-- include: clock state entry trace turn
-- args: received records*
records(RECORDS, received_at(RECEIVED))
flush()
return 'OK'
