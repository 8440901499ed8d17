-- Register a conversation whose turn sleeps until the model is available. Call it once the turn sleeps.
-- Returns 1 if the model is available already: wake the turn, nothing was written.
-- include: clock model
-- args: conversation
redis.call('ZREMRANGEBYSCORE', WAITING, '-inf', NOW - 3600000)
if get('open') ~= 1 and NOW >= get('until') and (ROOM == 0 or in_flight() < ROOM) then return 1 end
redis.call('ZADD', WAITING, 'NX', NOW, CONVERSATION)
redis.call('EXPIRE', WAITING, 3600)
return 0
