-- Ask a server to leave, or pin it so that nothing but this makes it leave.
-- KEYS lib/served
-- ARGV 1 server · 2 stop | pin | unpin · 3 '1' stops it though it has calls in flight
-- Returns 1 when it is done, 0 when there is no such server, -1 when it is busy.
-- include: served
for _, server in ipairs(live()) do
  if server.id == ARGV[1] then
    if ARGV[2] == 'stop' then
      if server.in_flight > 0 and ARGV[3] ~= '1' then return -1 end
      server.state = 'stopping'
    else server.pinned = ARGV[2] == 'pin' end
    keep(server)
    return 1
  end
end
return 0
