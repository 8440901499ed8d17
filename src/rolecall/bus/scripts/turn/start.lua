-- Tell that an instance begins to handle its entry. A died attempt leaves at least this.
-- KEYS lib/guard  ARGV lib/guard, 6 instance · 7 delivery count · 8 hop · 9 previous holder or '' · 10 role
--      11 anything: asks for the verdict alone
-- Returns {OK|FENCED|STALE, ms in flight, ms since the entry was written}. Repeating it repeats the event, which
-- only resets what a follower shows.
-- include: guard
local verdict = guard()
if verdict ~= 'OK' then return { verdict, 0, 0 } end
local waited = math.max(0, NOW - tonumber(string.match(ID, '^%d+')))
local received = tonumber(redis.call('HGET', JOURNAL, TURN .. ':r') or NOW)
if ARGV[11] then return { 'OK', NOW - received, waited } end
event(TURN, 'started', 'r', ARGV[10], 'h', ARGV[8], 'n', ARGV[7], 'w', ARGV[6])
if ARGV[9] == '' then record(TURN, 0, ARGV[6], 'STARTED', 'hop ' .. ARGV[8])
else record(TURN, 0, ARGV[6], 'TAKEN_OVER', 'hop ' .. ARGV[8] .. ' attempt ' .. ARGV[7] .. ' from ' .. ARGV[9]) end
return { 'OK', NOW - received, waited }
