-- Do nothing. Replicas confirm this, and with it what was written before.
-- Confirmed by replicas.
-- Returns 1.
-- keys: log
return 1
