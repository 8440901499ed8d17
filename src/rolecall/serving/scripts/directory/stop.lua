-- Ask a server to leave once it has answered what it was asked, or pin it so that nothing but this makes it leave.
-- KEYS lib/served
-- ARGV 1 server · 2 stop | pin | unpin · 3 '1' does not wait for calls in flight
-- Returns 1 when it is done, 0 when there is no such server, -1 when it is busy.
-- include: directory
for _, server in ipairs(live()) do
  if server.id == ARGV[1] then
    if ARGV[2] == 'stop' then
      if server.in_flight > 0 and ARGV[3] ~= '1' then return -1 end
      server.state = 'stopping'
      for _, call in ipairs(calls(server.id)) do redis.call('ZREM', CALLS, call) end
    else server.pinned = ARGV[2] == 'pin' end
    keep(server)
    return 1
  end
end
return 0
