-- Forget the outside message that shows a part of a turn, if it is still `message`.
--   shown: messages of the turn by part; shows: turn of the message
-- Returns 1 if it was, else 0.
-- keys: shown shows
-- args: part message
if redis.call('HGET', SHOWN, PART) ~= MESSAGE then return 0 end
redis.call('HDEL', SHOWN, PART)
redis.call('DEL', SHOWS)
return 1
