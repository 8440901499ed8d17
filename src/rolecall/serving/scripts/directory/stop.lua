-- Ask a server to leave once it has answered what it was asked, or pin it so that nothing but this makes it leave.
-- Returns 1 when it is done, 0 when there is no such server, -1 when it is busy.
-- include: directory
-- args: server order busy
for _, server in ipairs(live()) do
  if server.id == SERVER then
    if ORDER == 'stop' then
      if server.in_flight > 0 and BUSY ~= '1' then return -1 end
      server.state = 'stopping'
      for _, call in ipairs(calls(server.id)) do redis.call('ZREM', CALLS, call) end
    else server.pinned = ORDER == 'pin' end
    keep(server)
    return 1
  end
end
return 0
