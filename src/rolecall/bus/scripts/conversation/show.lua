-- Remember which outside message shows a part of a turn, unless another one does already.
--   shown: messages of the turn by part; shows: turn of the message; keep: ms
-- Returns the message that shows the part.
-- keys: shown shows
-- args: part message turn keep
local stands = redis.call('HGET', SHOWN, PART)
if stands and stands ~= MESSAGE then return stands end
redis.call('HSET', SHOWN, PART, MESSAGE)
redis.call('PEXPIRE', SHOWN, KEEP)
redis.call('SET', SHOWS, TURN, 'PX', KEEP)
return MESSAGE
