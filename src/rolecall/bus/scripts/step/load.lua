-- Read the journal of the handler that holds the entry. A holder that was asleep learns here that it is none any more,
-- before it does what others have done since.
-- Returns {OK|FENCED|STALE, {field, value …}}. Only OK has fields; those of an earlier hop are left out.
-- include: clock state entry trace turn step
local verdict = guard()
if verdict ~= 'OK' or redis.call('HGET', STEPS, 'h') ~= HOP then return { verdict, {} } end
return { verdict, redis.call('HGETALL', STEPS) }
