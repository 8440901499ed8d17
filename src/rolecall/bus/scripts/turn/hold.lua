-- Hold a turn that has not begun for longer, because a message that will join it is on its way.
--   hold: ms from now
-- Returns OK | GONE (it has begun or ended).
-- include: clock state entry trace turn
-- keys: mailbox deferred
-- args: hold
local first = TURN == running and held()
if not first and not redis.call('LPOS', MAILBOX, TURN) then return 'GONE' end
redis.call('HSET', JOURNAL, TURN .. ':d', NOW + tonumber(HOLD))
if first then redis.call('ZADD', DEFERRED, NOW + tonumber(HOLD), NAME) end
return 'OK'
