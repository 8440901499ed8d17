-- Remove schedules of a conversation.
--   ids: those to remove; none for all
-- Returns how many there were.
-- include: clock state entry trace turn
-- keys: deferred planned schedules
-- args: instance ids*
if #IDS == 0 then
  for _, field in ipairs(redis.call('HKEYS', SCHEDULES)) do
    if string.sub(field, -2) ~= ':t' then table.insert(IDS, field) end
  end
end
local removed = 0
for _, id in ipairs(IDS) do
  redis.call('ZREM', DEFERRED, NAME .. '\31' .. id)
  redis.call('ZREM', PLANNED, NAME .. '\31' .. id)
  if redis.call('HDEL', SCHEDULES, id, id .. ':t') > 0 then
    removed = removed + 1
    record('', 0, INSTANCE, 'NOTE', 'schedule ' .. id .. ' removed')
  end
end
flush()
return removed
