-- Pick the server for one call of a model that several serve: the least busy for its weight of those that are well.
-- KEYS 1 calls in flight, '<server> <call>' by deadline · 2 what is known of the servers, '<server> <field>'
-- ARGV 1 call · 2 ms a call is in flight without a sign of life · 3 ms a probe may take
--      then of each server: id · most calls at once · weight
-- Returns {GO, server, probe} | {FULL, '', probe} | {AWAY, why, probe, ms to the next look}; probe: the server that the
-- caller and nobody else is to look after now, or ''.
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', NOW)

local function get(server, field) return tonumber(redis.call('HGET', KEYS[2], server .. ' ' .. field) or 0) end

local busy = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local server = string.match(member, '^(%S+) ')
  busy[server] = (busy[server] or 0) + 1
end

local best, least, oldest, well, probe, look, why = nil, nil, nil, false, '', nil, ''
for i = 4, #ARGV, 3 do
  local server, slots, weight = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local till = get(server, 'until')
  if till > 0 then
    -- A probe under way is soon over, and the time it may take is for one whose process died.
    local at = get(server, 'probe') > NOW and math.max(till, NOW + 250) or till
    if at > NOW then look = math.min(look or at, at)
    elseif probe == '' then probe = server end
    why = redis.call('HGET', KEYS[2], server .. ' why') or why
  else
    well = true
    local n = busy[server] or 0
    local load, last = (n + 1) / weight, get(server, 'last')
    if n < slots and (not best or load < least or (load == least and last < oldest)) then
      best, least, oldest = server, load, last
    end
  end
end
if probe ~= '' then redis.call('HSET', KEYS[2], probe .. ' probe', string.format('%.0f', NOW + tonumber(ARGV[3]))) end
redis.call('PEXPIRE', KEYS[2], 86400000)
if not well then return { 'AWAY', why, probe, probe ~= '' and 0 or look and look - NOW or 1000 } end
if not best then return { 'FULL', '', probe } end
redis.call('ZADD', KEYS[1], NOW + tonumber(ARGV[2]), best .. ' ' .. ARGV[1])
redis.call('PEXPIRE', KEYS[1], 86400000)
redis.call('HSET', KEYS[2], best .. ' last', redis.call('HINCRBY', KEYS[2], 'picks', 1))
redis.call('PEXPIRE', KEYS[2], 86400000)
return { 'GO', best, probe }
