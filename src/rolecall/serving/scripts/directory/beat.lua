-- Heartbeat of a model server, sent by its host only.
--   server: its current state as JSON; lasts: ms until it counts as gone
--   again: if it had been removed, '0' it stays removed, '1' it returns unless its model has another server, '2' it
--     returns
-- Returns {state, calls in flight, ms since the last one, processes of its machine that may need it, 1 if it is pinned}
-- | {GONE}.
-- include: clock directory
-- args: server lasts again
local now, known, another = cjson.decode(SERVER), nil, false
for _, server in ipairs(live()) do
  if server.id == now.id then known = server
  elseif server.spec == now.spec and server.machine == now.machine then another = true end
end
if not known then
  if AGAIN == '0' or (AGAIN == '1' and another) then return { 'GONE' } end
  now.since, now.used, now.in_flight = NOW, NOW, #calls(now.id)
else
  now.since, now.used, now.pinned, now.in_flight = known.since, known.used, known.pinned, known.in_flight
  if known.ready > 0 then now.ready = known.ready end
  if known.state == 'stopping' then now.state = 'stopping' end
end
if now.in_flight > 0 then now.used = NOW end
if now.state == 'ready' and now.ready == 0 then now.ready, now.used = NOW, NOW end
now.lapses, now.beat = NOW + tonumber(LASTS), NOW
keep(now)
return { now.state, now.in_flight, NOW - now.used, users_of(now.machine), now.pinned and 1 or 0 }
