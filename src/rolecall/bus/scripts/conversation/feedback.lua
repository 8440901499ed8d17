-- Store a user's vote on an answer, log it and count it for the day. A changed vote moves the count of the same day.
--   vote: up | down, '' withdraws it; day: YYYYMMDD; keep: ms that votes are kept
-- Returns 1 if the vote changed, else 0 and nothing is written.
-- include: clock state entry trace turn
-- keys: votes statistics
-- args: user vote day keep instance
local before, day = string.match(redis.call('HGET', VOTES, USER) or '', '^(%a*)|(%d+)$')
if (before or '') == VOTE then return 0 end
if VOTE == '' then redis.call('HDEL', VOTES, USER) else redis.call('HSET', VOTES, USER, VOTE .. '|' .. DAY) end
redis.call('PEXPIRE', VOTES, KEEP)
if day == DAY then redis.call('HINCRBY', STATISTICS, before, -1) end
if VOTE ~= '' then redis.call('HINCRBY', STATISTICS, VOTE, 1) end
redis.call('EXPIRE', STATISTICS, 691200)
record(TURN, 0, INSTANCE, 'NOTE', 'feedback ' .. (VOTE ~= '' and VOTE or 'taken back') .. ' from ' .. USER)
flush()
return 1
