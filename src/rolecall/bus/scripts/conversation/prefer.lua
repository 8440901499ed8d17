-- Change what a conversation prefers, from outside its turns.
-- Returns 1 when it is news, else 0 and nothing is written.
-- include: state turn
-- args: keep preference value instance
if (redis.call('HGET', PREFERENCES, PREFERENCE) or '') == VALUE then return 0 end
if VALUE == '' then redis.call('HDEL', PREFERENCES, PREFERENCE) else redis.call('HSET', PREFERENCES, PREFERENCE, VALUE) end
if not state[1] then redis.call('PEXPIRE', PREFERENCES, KEEP) end
if state[3] then record('', 0, INSTANCE, 'NOTE', PREFERENCE .. ' is ' .. (VALUE ~= '' and VALUE or 'auto')) end
return 1
