-- Remember which outside message shows a part of a turn, unless one is remembered already.
-- Returns the outside message that stands.
-- keys: shown shows
-- args: part message turn keep
local stands = redis.call('HGET', SHOWN, PART)
if stands and stands ~= MESSAGE then return stands end
redis.call('HSET', SHOWN, PART, MESSAGE)
redis.call('PEXPIRE', SHOWN, KEEP)
redis.call('SET', SHOWS, TURN, 'PX', KEEP)
return MESSAGE
