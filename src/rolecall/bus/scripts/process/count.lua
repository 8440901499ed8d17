-- Add to counters, in one step for all of them. A repeat adds again.
-- Returns how many counters there were.
-- keys: counters
-- args: names* amounts*
for i, name in ipairs(NAMES) do redis.call('HINCRBY', COUNTERS, name, AMOUNTS[i]) end
return #NAMES
