-- Change what a conversation prefers, from outside its turns.
-- KEYS lib/guard with 1 any of the shard
-- ARGV lib/guard with 4 '' · 6 ms a conversation is kept · 7 name · 8 value, '' takes it back · 9 instance
-- Returns 1 when it is news, else 0 and nothing is written.
-- include: guard
local PREFERENCE, VALUE = ARGV[7], ARGV[8]
if (redis.call('HGET', PREFS, PREFERENCE) or '') == VALUE then return 0 end
if VALUE == '' then redis.call('HDEL', PREFS, PREFERENCE) else redis.call('HSET', PREFS, PREFERENCE, VALUE) end
if not state[1] then redis.call('PEXPIRE', PREFS, ARGV[6]) end
if state[3] then record('', 0, ARGV[9], 'NOTE', PREFERENCE .. ' is ' .. (VALUE ~= '' and VALUE or 'auto')) end
return 1
