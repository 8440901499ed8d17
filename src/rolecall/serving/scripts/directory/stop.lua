-- Ask a server to leave once its calls are answered, or pin it: a pinned server only leaves when it is told to stop.
--   order: stop | pin | unpin; busy: '1' does not wait for calls in flight
-- Returns 1 if it is done, 0 if there is no such server, -1 if it is busy.
-- include: clock directory
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
