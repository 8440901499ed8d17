-- Pick the server for a call of a model that has several: of the healthy ones, the least busy for its weight.
--   calls: in flight, `<server> <call>` by deadline
--   known: of servers that failed `<server> <field>`: `until` (ms; left out until then), `opens` (how often in a row),
--     `why`, `probe` (ms; a process probes it until then), `last` (number of its last pick); of all `seen` (ms), `picks`
--   lease: ms a call is in flight without being extended; probe_ms: longest time of a probe
--   servers: per server its id, maximum of concurrent calls and weight
-- Returns {GO, server, probe} | {FULL, '', probe} | {AWAY, why, probe, ms to the next try}. `probe` is a server that the
-- caller should probe now, or ''.
-- include: clock
-- keys: calls known
-- args: call lease probe_ms servers*
redis.call('ZREMRANGEBYSCORE', CALLS, '-inf', NOW)

-- When the clock stepped back, whatever was set until some time would last as much longer.
local seen = tonumber(redis.call('HGET', KNOWN, 'seen') or 0)
if NOW < seen - 2000 then
  for i = 1, #SERVERS, 3 do redis.call('HDEL', KNOWN, SERVERS[i] .. ' until', SERVERS[i] .. ' probe') end
  redis.call('ZREMRANGEBYSCORE', CALLS, NOW + 2 * tonumber(LEASE), '+inf')
end
if math.abs(NOW - seen) > 1000 then redis.call('HSET', KNOWN, 'seen', NOW) end

local function get(server, field) return tonumber(redis.call('HGET', KNOWN, server .. ' ' .. field) or 0) end

local busy = {}
for _, member in ipairs(redis.call('ZRANGE', CALLS, 0, -1)) do
  local server, call = string.match(member, '^(%S+) (.*)$')
  if call == CALL and CALL ~= '' then return { 'GO', server, '' } end -- a repeat after a lost reply
  busy[server] = (busy[server] or 0) + 1
end

local best, least, oldest, well, probe, look, why = nil, nil, nil, false, '', nil, ''
for i = 1, #SERVERS, 3 do
  local server, slots, weight = SERVERS[i], tonumber(SERVERS[i + 1]), tonumber(SERVERS[i + 2])
  local till = get(server, 'until')
  if till > 0 then
    -- A probe ends soon; `probe_ms` only matters if the probing process died.
    local at = get(server, 'probe') > NOW and math.max(till, NOW + 250) or till
    if at > NOW then look = math.min(look or at, at)
    elseif probe == '' then probe = server end
    why = redis.call('HGET', KNOWN, server .. ' why') or why
  else
    well = true
    local n = busy[server] or 0
    local load, last = (n + 1) / weight, get(server, 'last')
    if n < slots and (not best or load < least or (load == least and last < oldest)) then
      best, least, oldest = server, load, last
    end
  end
end
if probe ~= '' then redis.call('HSET', KNOWN, probe .. ' probe', string.format('%.0f', NOW + tonumber(PROBE_MS))) end
redis.call('PEXPIRE', KNOWN, 86400000)
if not well then return { 'AWAY', why, probe, probe ~= '' and 0 or look and look - NOW or 1000 } end
if not best then return { 'FULL', '', probe } end
redis.call('ZADD', CALLS, NOW + tonumber(LEASE), best .. ' ' .. CALL)
redis.call('PEXPIRE', CALLS, 86400000)
redis.call('HSET', KNOWN, best .. ' last', redis.call('HINCRBY', KNOWN, 'picks', 1))
redis.call('PEXPIRE', KNOWN, 86400000)
return { 'GO', best, probe }
