-- Prelude of the scripts that write the journal of a handler's steps; follows turn. The journal is a hash: `h` is the hop
-- it belongs to, `b` its size in bytes, and each step has a field.
-- keys: steps
-- args: hop limit

-- Write the fields that are not there yet, and note that the turn has steps. What an earlier hop of the turn has recorded
-- is dropped. Returns the indices of the new fields, or nil, with nothing written, if that would exceed the limit.
local function store(fields, values)
  local found = redis.call('HMGET', STEPS, 'h', 'b', unpack(fields))
  local continued = found[1] == HOP
  local size, new, written = continued and tonumber(found[2]) or 0, {}, { 'h', HOP, 'b', 0 }
  for i, field in ipairs(fields) do
    if not (continued and found[i + 2]) then
      new[#new + 1], size = i, size + #values[i]
      written[#written + 1], written[#written + 2] = field, values[i]
    end
  end
  if size > tonumber(LIMIT) then return nil end
  written[4] = size
  if found[1] and not continued then redis.call('DEL', STEPS) end
  if new[1] then redis.call('HSET', STEPS, unpack(written)) end
  if not continued then redis.call('HSET', JOURNAL, TURN .. ':s', HOP) end
  return new
end
