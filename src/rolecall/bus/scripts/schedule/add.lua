-- Store a schedule and when it is due.
--   schedule: its id; definition: as JSON; due: in ms; limit: schedules of a conversation
--   repeat_ms: how long a repeat is recognized; said: the schedule as the log shows it
-- Returns OK | DUP (it was stored before, and may have ended since) | FULL; the last two write nothing.
-- include: clock state entry trace turn
-- keys: idempotency deferred planned schedules
-- args: schedule definition due limit repeat_ms instance said
if redis.call('EXISTS', IDEMPOTENCY) == 1 then return 'DUP' end
if #redis.call('HKEYS', SCHEDULES) >= 2 * tonumber(LIMIT) then return 'FULL' end
redis.call('SET', IDEMPOTENCY, '|schedule', 'PX', REPEAT_MS)
redis.call('HSET', SCHEDULES, SCHEDULE, DEFINITION, SCHEDULE .. ':t', '')
redis.call('ZADD', PLANNED, DUE, NAME .. '\31' .. SCHEDULE)
redis.call('ZADD', DEFERRED, DUE, NAME .. '\31' .. SCHEDULE)
record('', 0, INSTANCE, 'NOTE', 'schedule ' .. SCHEDULE .. ': ' .. SAID)
flush()
return 'OK'
