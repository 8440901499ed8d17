-- Put right what a step of the server's clock did to a shard: leases start over, as their idle times are wrong; deferred
-- turns sleep as long as they were to; turns in flight are as old as they were; schedules follow the new time. Any number
-- of processes may run this, and must for the streams of their roles; the rest is done once.
--   clock: hash of what the clock showed before a step → the step in ms
--   before: what the clock would show now; shift: ms, negative for back
-- Returns 1 if this process was first, else 0.
-- include: clock
-- keys: clock deferred active streams*
-- args: before shift
local before, shift = tonumber(BEFORE), tonumber(SHIFT)
for _, stream in ipairs(STREAMS) do
  local start = '-'
  while start do
    local rows = redis.pcall('XPENDING', stream, 'g', start, '+', 100)
    if rows.err then break end
    for _, row in ipairs(rows) do redis.call('XCLAIM', stream, 'g', row[2], 0, row[1], 'IDLE', 0, 'JUSTID') end
    start = #rows == 100 and '(' .. rows[100][1] or nil
  end
end

local steps = redis.call('HGETALL', CLOCK)
for i = 1, #steps, 2 do
  if math.abs(steps[i] - before) < 600000 and math.abs(steps[i + 1] - shift) < 5000 then return 0 end
end
redis.call('HSET', CLOCK, string.format('%.0f', before), string.format('%.0f', shift))
redis.call('EXPIRE', CLOCK, 604800)

local function move(key, low, high, to)
  local flat = redis.call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local scheduled = key == DEFERRED and string.find(flat[i], '\31[^.]*$') -- a call has a dot there
    if not scheduled then redis.call('ZADD', key, 'XX', to(tonumber(flat[i + 1])), flat[i]) end
  end
end

-- What was written after the step, until it was noticed, is told apart by its time: who slept before is due after what the
-- clock showed, give or take a late promotion. A sleep that began in that moment and is longer than a step back ends early.
if shift > 0 then
  move(DEFERRED, '-inf', before + shift - 10000, function(due) return due + shift end)
  move(ACTIVE, '-inf', before, function(since) return since + shift end)
else
  local first = string.format('%.0f', math.max(NOW, before - 10000))
  move(DEFERRED, '(' .. first, '+inf', function(due) return math.max(NOW, due + shift) end)
end
return 1
