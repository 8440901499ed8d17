-- Note what a user thinks of an answer: the transcript tells it, the day counts it. A change of mind moves the count,
-- within the day it was made.
-- KEYS lib/guard with 1 any of the shard · 7 votes on the turn · 8 statistics of the day
-- ARGV lib/guard · 6 user · 7 up|down, '' takes it back · 8 the day · 9 ms the votes are kept · 10 instance
-- Returns 1 when it is news, else 0 and nothing is written.
-- include: guard
local USER, VOTE, DAY = ARGV[6], ARGV[7], ARGV[8]
local before, day = string.match(redis.call('HGET', KEYS[7], USER) or '', '^(%a*)|(%d+)$')
if (before or '') == VOTE then return 0 end
if VOTE == '' then redis.call('HDEL', KEYS[7], USER) else redis.call('HSET', KEYS[7], USER, VOTE .. '|' .. DAY) end
redis.call('PEXPIRE', KEYS[7], ARGV[9])
if day == DAY then redis.call('HINCRBY', KEYS[8], before, -1) end
if VOTE ~= '' then redis.call('HINCRBY', KEYS[8], VOTE, 1) end
redis.call('EXPIRE', KEYS[8], 691200)
record(TURN, 0, ARGV[10], 'NOTE', 'feedback ' .. (VOTE ~= '' and VOTE or 'taken back') .. ' from ' .. USER)
return 1
