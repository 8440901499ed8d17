-- Prelude of the scripts that lease entries for the free slots of a process; follows clock, state and trace. The entries
-- belong to any conversations of the shard, so the keys of these are made here, from stems without a name.
--   streams: demand by demand, each one's in the order to serve them
--   lease: ms, 0 leaves expired leases alone
--   expected: what the clock should show, 0 if that is not known; after a step, idle times are wrong
--   demands: one by one: role, '1' if an entry may be on its last delivery here (one in all), number of streams, number
--     of messages of the history and '1' for the preferences to come along with each entry, number of free slots, then
--     the instance in each slot
-- keys: streams*
-- args: conversation_stem journal_stem events_stem channel_stem history_stem preferences_stem
-- args: lease expected max_deliveries
-- args: demands*

-- Record that an instance begins an entry that this process has just leased. If the process dies mid-attempt, this is all
-- that remains. Returns when the turn was received, or 0 if the entry is not that of a running turn; ms since then; and
-- ms since the entry was written.
--   quiet: '1' writes nothing, '2' (the turn was resumed) only a log record; paused: ms that the time of the turn stood still
local function begin(stream, id, count, previous, name, turn, hop, received, quiet, paused, role, instance)
  local running, at, session = unpack(redis.call('HMGET', CONVERSATION_STEM .. name, 'cur', 'at', 'session'))
  if is_call(turn) then
    if redis.call('HGET', JOURNAL_STEM .. name, turn .. ':a') ~= place(stream, id) then return 0, 0, 0 end
  elseif is_control(turn) then
    if redis.call('HEXISTS', JOURNAL_STEM .. name, turn .. ':e') == 0 then return 0, 0, 0 end
  elseif running ~= turn or at ~= place(stream, id) then
    return 0, 0, 0
  end
  received = tonumber(received or redis.call('HGET', JOURNAL_STEM .. name, turn .. ':r') or NOW)
  if quiet ~= '1' and count <= tonumber(MAX_DELIVERIES) then
    local events = EVENTS_STEM .. name
    if quiet ~= '2' and not is_call(turn) then
      tell(events, CHANNEL_STEM .. name, turn, 'started', 'r', role, 'h', hop, 'n', count, 'w', instance)
    end
    -- Admission gave the stream an hour.
    if NOW - received > 600000 then redis.call('EXPIRE', events, 3600) end
    local word, text = quiet == '2' and 'RESUMED' or 'STARTED', 'hop ' .. hop
    if previous ~= '' then word, text = 'TAKEN_OVER', text .. ' attempt ' .. count .. ' from ' .. previous end
    log_record(name, session, turn, received, NOW, instance, word, text)
  end
  return received, NOW - received - tonumber(paused or 0), math.max(0, NOW - tonumber(string.match(id, '^%d+')))
end

-- Lease what the demands ask for: first entries whose lease expired, then new ones. Returns {{index in `streams`, entry
-- id, delivery count, previous holder or '', {field, value …}, number of the slot, what `begin` returns, and the messages
-- and preferences that come along or nothing} …}.
local function take()
  local lease, most, taken = tonumber(LEASE), tonumber(MAX_DELIVERIES), {}
  local role, last, messages, preferences, free, slot, before
  local suspect = false
  if EXPECTED ~= '0' and math.abs(NOW - tonumber(EXPECTED)) > 2000 then lease = 0 end

  local function add(k, id, count, previous, fields)
    local entry = { c = nil, t = nil, h = nil, e = nil, x = nil, r = nil, q = nil, p = nil } -- room for them
    local received, age, waited, remembered, preferred = 0, 0, 0, false, false
    for f = 1, #fields, 2 do entry[fields[f]] = fields[f + 1] end
    if entry.c and entry.t then
      received, age, waited = begin(STREAMS[k], id, count, previous, entry.c, entry.t, entry.h or '', entry.r,
        count == 1 and entry.q, entry.p, role, DEMANDS[slot])
      if messages ~= '0' then remembered = redis.call('LRANGE', HISTORY_STEM .. entry.c, -messages, -1) end
      if preferences == '1' then preferred = redis.call('HGETALL', PREFERENCES_STEM .. entry.c) end
    end
    taken[#taken + 1] = { k, id, count, previous, fields, slot - before, received, age, waited, remembered, preferred }
    free, slot = free - 1, slot + 1
  end

  local function claim(k)
    local rows = redis.pcall('XPENDING', STREAMS[k], 'g', 'IDLE', lease, '-', '+', 100)
    if rows.err then return end
    for _, row in ipairs(rows) do
      local id, holder, _, count = unpack(row)
      local deliveries = count + 1
      if free > 0 and (deliveries ~= most or last) then
        local entry = redis.call('XCLAIM', STREAMS[k], 'g', PROCESS, lease, id)[1]
        if entry and entry[2] then
          add(k, id, deliveries, holder, entry[2])
          if deliveries == most then last, suspect = false, true end
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
    for _, entry in ipairs(reply and reply[1][2] or {}) do add(k, entry[1], 1, '', entry[2]) end
  end

  local first, d = 1, 1
  before = 0
  while DEMANDS[d] do
    role, last, messages, preferences = DEMANDS[d], DEMANDS[d + 1] == '1' and not suspect, DEMANDS[d + 3], DEMANDS[d + 4]
    free, slot, before = tonumber(DEMANDS[d + 5]), d + 6, before + 6
    local beyond, following = first + tonumber(DEMANDS[d + 2]), slot + free
    for k = first, beyond - 1 do if lease > 0 and free > 0 then claim(k) end end
    for k = first, beyond - 1 do if free > 0 then read(k) end end
    first, d = beyond, following
  end
  return taken
end

