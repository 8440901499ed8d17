-- List the live model servers.
-- Changes nothing: expired servers are left out but not removed.
-- Returns each as JSON, with `in_flight` calls, `age` and `idle` in ms.
-- include: clock directory
local shown, flat = {}, redis.call('HGETALL', SERVERS)
local under_way = redis.call('ZRANGEBYSCORE', CALLS, '(' .. NOW, '+inf')
for i = 2, #flat, 2 do
  local server = cjson.decode(flat[i])
  if not gone(server) then
    local start = server.id .. ' '
    server.in_flight = 0
    for _, call in ipairs(under_way) do
      if string.sub(call, 1, #start) == start then server.in_flight = server.in_flight + 1 end
    end
    server.age, server.idle = NOW - server.since, NOW - server.used
    shown[#shown + 1] = cjson.encode(server)
  end
end
return shown
