-- Forget an outside message that showed a part of a turn, if it is still the one remembered.
-- Returns 1 when it was, else 0.
-- keys: shown shows
-- args: part message
if redis.call('HGET', SHOWN, PART) ~= MESSAGE then return 0 end
redis.call('HDEL', SHOWN, PART)
redis.call('DEL', SHOWS)
return 1
