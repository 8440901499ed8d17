-- Prelude of the scripts that write the journal of a handler's steps; follows turn. The journal is a hash: `h` is the hop
-- it belongs to, `b` its size in bytes, and each step has a field.
-- keys: steps
-- args: hop limit

-- Drop what an earlier hop of the turn has recorded, and note that the turn has steps.
local function begin_steps()
  local hop = redis.call('HGET', STEPS, 'h')
  if hop == HOP then return end
  if hop then redis.call('DEL', STEPS) end
  redis.call('HSET', STEPS, 'h', HOP)
  redis.call('HSET', JOURNAL, TURN .. ':s', HOP)
end

-- Write the fields that are not there yet. False, with nothing written, if that would exceed the limit.
local function store(fields, values)
  local new, size = {}, tonumber(redis.call('HGET', STEPS, 'b') or 0)
  for i, field in ipairs(fields) do
    if redis.call('HEXISTS', STEPS, field) == 0 then
      new[#new + 1], new[#new + 2] = field, values[i]
      size = size + #values[i]
    end
  end
  if size > tonumber(LIMIT) then return false end
  if new[1] then redis.call('HSET', STEPS, 'b', size, unpack(new)) end
  return true
end

