-- Record that an instance begins to handle its entry. If the process dies mid-attempt, this record is all that remains.
--   previous: the process that held the entry before, or ''; quiet: '1' asks for the verdict only
-- Returns {OK|FENCED|STALE, ms since the turn was received, ms since the entry was written}. A repeat repeats the event,
-- which only resets what followers show.
-- include: clock state entry turn
-- args: instance deliveries hop previous role quiet
local verdict = guard()
if verdict ~= 'OK' then return { verdict, 0, 0 } end
local waited = math.max(0, NOW - tonumber(string.match(ENTRY, '^%d+')))
local received = tonumber(redis.call('HGET', JOURNAL, TURN .. ':r') or NOW)
if QUIET == '1' then return { 'OK', NOW - received, waited } end
event(TURN, 'started', 'r', ROLE, 'h', HOP, 'n', DELIVERIES, 'w', INSTANCE)
if PREVIOUS == '' then record(TURN, 0, INSTANCE, 'STARTED', 'hop ' .. HOP)
else record(TURN, 0, INSTANCE, 'TAKEN_OVER', 'hop ' .. HOP .. ' attempt ' .. DELIVERIES .. ' from ' .. PREVIOUS) end
return { 'OK', NOW - received, waited }
