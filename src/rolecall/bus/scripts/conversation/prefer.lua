-- Set one preference of a conversation outside its turns.
--   value: '' removes the preference; keep: ms that an idle conversation is kept;
--   shown: what the transcript says of the value
-- Returns 1 if the preference changed, else 0 and nothing is written.
-- include: clock state entry trace turn
-- args: keep preference value shown instance
if (redis.call('HGET', PREFERENCES, PREFERENCE) or '') == VALUE then return 0 end
if VALUE == '' then redis.call('HDEL', PREFERENCES, PREFERENCE) else redis.call('HSET', PREFERENCES, PREFERENCE, VALUE) end
if not running then redis.call('PEXPIRE', PREFERENCES, KEEP) end
if session then record('', 0, INSTANCE, 'NOTE', PREFERENCE .. ' is ' .. SHOWN) end
flush()
return 1
