-- Tell that an instance begins to handle its entry. A died attempt leaves at least this.
-- Returns {OK|FENCED|STALE, ms in flight, ms since the entry was written}. Repeating it repeats the event, which
-- only resets what a follower shows.
-- include: state turn
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
