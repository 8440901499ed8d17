-- Note that a conversation's turn sleeps until the model is back or has room; call it once the turn sleeps.
-- Returns 1 when there is nothing to wait for any more: wake it now, it was not noted.
-- include: model
-- args: conversation
redis.call('ZREMRANGEBYSCORE', WAITING, '-inf', NOW - 3600000)
if get('open') ~= 1 and NOW >= get('until') and (ROOM == 0 or in_flight() < ROOM) then return 1 end
redis.call('ZADD', WAITING, 'NX', NOW, CONVERSATION)
redis.call('EXPIRE', WAITING, 3600)
return 0
