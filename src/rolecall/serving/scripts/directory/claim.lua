-- Claim a server of a model: find the existing one, or reserve a place to start it if the machine has enough memory.
--   server: the wanted one as JSON; user: the process, for `user_lasts` ms; lasts: ms that the place is reserved
--   most: MB of memory for all servers of the machine; free: MB free now; resident: ms a loaded model stays at least
--   hungry: '1' also asks busy servers to leave, once their calls are answered
-- Returns {READY|STARTING, server} | {START} | {FAILED, why, ms to the next try}
-- | {FULL, MB used, MB available} | {NEVER, MB of pinned servers, MB available}.
-- include: clock directory
-- args: server user user_lasts lasts most free resident hungry
local wanted, most = cjson.decode(SERVER), tonumber(MOST)
local servers = live()
redis.call('ZADD', USERS, NOW + tonumber(USER_LASTS), USER)
outlive(USERS, tonumber(USER_LASTS))

local used, resident, leaving, pinned, idle = 0, 0, 0, 0, {}
for _, server in ipairs(servers) do
  local mine = server.spec == wanted.spec and (server.machine == wanted.machine or server.machine == '')
  if mine and server.state == 'ready' then return { 'READY', cjson.encode(server) } end
  if mine and server.state == 'starting' then return { 'STARTING', cjson.encode(server) } end
  if server.machine == wanted.machine then
    used = used + server.ram
    if server.measured then resident = resident + server.ram end
    if server.state == 'stopping' then leaving = leaving + server.ram end
    if server.pinned then pinned = pinned + server.ram end
    local stayed = server.state == 'ready' and NOW - server.ready > tonumber(RESIDENT)
    if stayed and not server.pinned and (server.in_flight == 0 or HUNGRY == '1') then idle[#idle + 1] = server end
  end
end

local failed = redis.call('HGET', FAILED, wanted.spec)
if failed then
  local till, why = string.match(failed, '^(%d+)|(.*)$')
  if tonumber(till) > NOW then return { 'FAILED', why, tonumber(till) - NOW } end
  redis.call('HDEL', FAILED, wanted.spec)
end

local budget = math.min(most, tonumber(FREE) + resident)
if used + wanted.ram > budget then
  if pinned + wanted.ram > most then return { 'NEVER', pinned, most } end
  table.sort(idle, function(a, b)
    if (a.in_flight == 0) ~= (b.in_flight == 0) then return a.in_flight == 0 end
    return a.used < b.used
  end)
  local free, out = budget - used + leaving, {}
  for _, server in ipairs(idle) do
    if free >= wanted.ram then break end
    free, out[#out + 1] = free + server.ram, server
  end
  -- No server is asked to leave unless that makes enough room.
  if free >= wanted.ram then
    for _, server in ipairs(out) do
      server.state = 'stopping'
      keep(server)
    end
  end
  return { 'FULL', used, budget }
end
wanted.lapses, wanted.beat, wanted.since, wanted.used = NOW + tonumber(LASTS), NOW, NOW, NOW
keep(wanted)
return { 'START' }
