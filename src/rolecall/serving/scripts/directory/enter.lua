-- Begin a call at the ready server of a model that is least busy for its weight.
--   lasts: ms a call is in flight without being extended; queue: '1' enters even if every slot is taken
-- Returns {GO, server} | {BUSY, calls in flight} | {NONE}.
-- include: clock directory
-- args: spec machine call lasts queue
local best, load, busy = nil, 0, -1
for _, server in ipairs(live()) do
  if server.spec == SPEC and server.state == 'ready' and (server.machine == MACHINE or server.machine == '') then
    local room = server.in_flight < server.slots or QUEUE == '1'
    local its = (server.in_flight + 1) / server.weight
    busy = math.max(busy, 0) + server.in_flight
    if room and (not best or its < load) then best, load = server, its end
  end
end
if busy < 0 then return { 'NONE' } end
if not best then return { 'BUSY', busy } end
redis.call('ZADD', CALLS, NOW + tonumber(LASTS), best.id .. ' ' .. CALL)
outlive(CALLS, tonumber(LASTS))
best.in_flight, best.used = best.in_flight + 1, NOW
keep(best)
return { 'GO', cjson.encode(best) }
