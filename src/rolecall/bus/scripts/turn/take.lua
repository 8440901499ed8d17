-- Lease entries for the free slots of this process: expired leases of others first, then new ones, over all bands.
-- KEYS streams, role by role, each role's in the order to serve them
-- ARGV 1 process · 2 lease in ms, 0 = claim nothing · 3 deliveries allowed · 4 number of roles,
--      then per role: free slots · 1 if an entry may be on its last delivery here · number of its streams
-- Returns {{key index, entry id, delivery count, previous holder or '', {field, value …}} …}.
local WHO, LEASE, RETRIES = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local taken, free, last = {}, 0, false

local function claim(k)
  local rows = redis.pcall('XPENDING', KEYS[k], 'g', 'IDLE', LEASE, '-', '+', 100)
  if rows.err then return end
  for _, row in ipairs(rows) do
    local deliveries = row[4] + 1
    if free > 0 and (deliveries ~= RETRIES or last) then
      local entry = redis.call('XCLAIM', KEYS[k], 'g', WHO, LEASE, row[1])[1]
      if entry and entry[2] then
        taken[#taken + 1] = { k, entry[1], deliveries, row[2], entry[2] }
        free = free - 1
        if deliveries == RETRIES then last = false end
      end
    end
  end
end

local function read(k)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'g', WHO, 'COUNT', free, 'STREAMS', KEYS[k], '>')
  if reply and reply.err then
    redis.call('XGROUP', 'CREATE', KEYS[k], 'g', '0', 'MKSTREAM')
    return read(k)
  end
  for _, entry in ipairs(reply and reply[1][2] or {}) do
    taken[#taken + 1] = { k, entry[1], 1, '', entry[2] }
    free = free - 1
  end
end

local first, argument = 1, 5
for _ = 1, tonumber(ARGV[4]) do
  free, last = tonumber(ARGV[argument]), ARGV[argument + 1] == '1'
  local beyond = first + tonumber(ARGV[argument + 2])
  for k = first, beyond - 1 do if LEASE > 0 and free > 0 then claim(k) end end
  for k = first, beyond - 1 do if free > 0 then read(k) end end
  first, argument = beyond, argument + 3
end
return taken
