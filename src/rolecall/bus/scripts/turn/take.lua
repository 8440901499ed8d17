-- Lease entries for the free slots of this process: first those whose lease expired, then new ones, over all bands.
--   streams: role by role, each role's in the order to serve them; lease: ms, 0 leaves expired leases alone
--   demands: per role the free slots, 1 if an entry may be on its last delivery here, and the number of its streams
-- Returns {{index in `streams`, entry id, delivery count, previous holder or '', {field, value …}} …}.
-- keys: streams*
-- args: process lease max_deliveries demands*
local lease, most = tonumber(LEASE), tonumber(MAX_DELIVERIES)
local taken, free, last = {}, 0, false

local function claim(k)
  local rows = redis.pcall('XPENDING', STREAMS[k], 'g', 'IDLE', lease, '-', '+', 100)
  if rows.err then return end
  for _, row in ipairs(rows) do
    local id, holder, _, count = unpack(row)
    local deliveries = count + 1
    if free > 0 and (deliveries ~= most or last) then
      local entry = redis.call('XCLAIM', STREAMS[k], 'g', PROCESS, lease, id)[1]
      if entry and entry[2] then
        taken[#taken + 1] = { k, id, deliveries, holder, entry[2] }
        free = free - 1
        if deliveries == most then last = false end
      end
    end
  end
end

local function read(k)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'g', PROCESS, 'COUNT', free, 'STREAMS', STREAMS[k], '>')
  if reply and reply.err then
    redis.call('XGROUP', 'CREATE', STREAMS[k], 'g', '0', 'MKSTREAM')
    return read(k)
  end
  for _, entry in ipairs(reply and reply[1][2] or {}) do
    taken[#taken + 1] = { k, entry[1], 1, '', entry[2] }
    free = free - 1
  end
end

local first = 1
for d = 1, #DEMANDS, 3 do
  free, last = tonumber(DEMANDS[d]), DEMANDS[d + 1] == '1'
  local beyond = first + tonumber(DEMANDS[d + 2])
  for k = first, beyond - 1 do if lease > 0 and free > 0 then claim(k) end end
  for k = first, beyond - 1 do if free > 0 then read(k) end end
  first = beyond
end
return taken
