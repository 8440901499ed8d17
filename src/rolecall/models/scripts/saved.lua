-- Count an answer that was replayed rather than paid for again.
-- Returns how many counters there were.
-- keys: spent
-- args: names* amounts*
for i, name in ipairs(NAMES) do redis.call('HINCRBY', SPENT, name, AMOUNTS[i]) end
redis.call('EXPIRE', SPENT, 3024000)
return #NAMES
