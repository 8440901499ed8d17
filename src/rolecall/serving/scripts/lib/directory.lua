-- Prelude of the scripts about model servers.
--   servers: hash id → JSON; calls in flight: sorted set `<server> <call>` → ms; users: processes that may need a
--   server, sorted set `<machine>/<process>` → ms; failed: models that could not be started, hash spec → `ms|why`
-- Every server carries `lapses`, the server's ms at which it is taken to be gone.
-- keys: servers calls users failed
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function beginning(key, start)
  local found = {}
  for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    if string.sub(member, 1, #start) == start then found[#found + 1] = member end
  end
  return found
end

local function calls(id) return beginning(CALLS, id .. ' ') end

local function users_of(machine) return #beginning(USERS, machine .. '/') end

local function forget(id)
  redis.call('HDEL', SERVERS, id)
  for _, call in ipairs(calls(id)) do redis.call('ZREM', CALLS, call) end
end

-- The live servers; those whose time is over are forgotten on the way.
local function live()
  redis.call('ZREMRANGEBYSCORE', CALLS, '-inf', NOW)
  redis.call('ZREMRANGEBYSCORE', USERS, '-inf', NOW)
  local servers, flat = {}, redis.call('HGETALL', SERVERS)
  for i = 2, #flat, 2 do
    local server = cjson.decode(flat[i])
    if server.lapses <= NOW then forget(server.id)
    else
      server.in_flight = #calls(server.id)
      servers[#servers + 1] = server
    end
  end
  return servers
end

-- Kept no longer than the last of them lives: where all are killed nothing stays behind.
local function keep(server)
  redis.call('HSET', SERVERS, server.id, cjson.encode(server))
  if redis.call('PTTL', SERVERS) < server.lapses - NOW then redis.call('PEXPIREAT', SERVERS, server.lapses) end
end

local function outlive(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end
