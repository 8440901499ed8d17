-- Begin a call of a model at that of its servers which has most room: fewest calls in flight by its weight.
-- KEYS lib/served
-- ARGV 1 spec of the model · 2 machine of the caller · 3 call · 4 ms the call lasts without a sign of life
--      5 '1' enters though every slot is taken: the server has them wait
-- Returns {GO, server} | {BUSY, calls in flight} | {NONE}
-- include: directory
local best, load, busy = nil, 0, -1
for _, server in ipairs(live()) do
  if server.spec == ARGV[1] and server.state == 'ready' and (server.machine == ARGV[2] or server.machine == '') then
    local room = server.in_flight < server.slots or ARGV[5] == '1'
    local its = (server.in_flight + 1) / server.weight
    busy = math.max(busy, 0) + server.in_flight
    if room and (not best or its < load) then best, load = server, its end
  end
end
if busy < 0 then return { 'NONE' } end
if not best then return { 'BUSY', busy } end
redis.call('ZADD', CALLS, NOW + tonumber(ARGV[4]), best.id .. ' ' .. ARGV[3])
outlive(CALLS, tonumber(ARGV[4]))
best.in_flight, best.used = best.in_flight + 1, NOW
keep(best)
return { 'GO', cjson.encode(best) }
