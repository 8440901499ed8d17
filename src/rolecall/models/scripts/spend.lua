-- Add to what was spent on models on a day, or saved by answers that were replayed rather than paid for again.
-- Returns how many counters there were.
-- keys: spent
-- args: names* amounts*
for i, name in ipairs(NAMES) do redis.call('HINCRBY', SPENT, name, AMOUNTS[i]) end
redis.call('EXPIRE', SPENT, 3024000)
return #NAMES
