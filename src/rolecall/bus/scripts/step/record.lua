-- Record finished steps of the handler that holds the entry, so that a repeated handling does not do them again. Steps
-- of an earlier hop are dropped. A step that is recorded already stays as it is.
--   limit: bytes that all steps of a handler may have; step_keys, values: one of each per step
-- Returns OK | FENCED | STALE | FULL (over the limit; nothing is written).
-- include: clock state entry trace turn step
-- args: received step_keys* values* records*
local verdict = guard()
if verdict ~= 'OK' then return verdict end
local new = store(STEP_KEYS, VALUES)
if not new then return 'FULL' end
if new[1] then records(RECORDS, received_at(RECEIVED)) end -- a repeat after a lost reply has none
flush()
return 'OK'
