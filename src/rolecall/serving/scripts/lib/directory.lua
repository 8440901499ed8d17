-- Prelude of the scripts of the directory of model servers; follows clock.
--   servers: hash id → JSON, with `lapses`, the ms at which the server counts as gone, and `beat`, when that was set
--   calls: in flight, sorted set `<server> <call>` → ms
--   users: processes that may need a server, sorted set `<machine>/<process>` → ms
--   failed: models that failed to start, hash spec → `ms|why`
-- keys: servers calls users failed

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

-- How many ms the clock stepped back since `server` was heard of, 0 if it did not.
local function stepped(server)
  local ms = (server.beat or 0) - NOW
  return ms > 2000 and ms or 0
end

local function gone(server) return server.lapses - stepped(server) <= NOW end

local function put_back(key, ms)
  local flat = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #flat, 2 do redis.call('ZADD', key, flat[i + 1] - ms, flat[i]) end
end

-- When the clock stepped back, all that lasts until some time would last as much longer.
local function step_back()
  local most, flat = 0, redis.call('HGETALL', SERVERS)
  for i = 2, #flat, 2 do
    local server = cjson.decode(flat[i])
    local ms = stepped(server)
    if ms > 0 then
      for _, name in ipairs({ 'lapses', 'beat', 'since', 'used', 'ready' }) do
        server[name] = math.max(0, (server[name] or 0) - ms)
      end
      redis.call('HSET', SERVERS, server.id, cjson.encode(server))
      most = math.max(most, ms)
    end
  end
  if most > 0 then
    put_back(CALLS, most)
    put_back(USERS, most)
    redis.call('DEL', FAILED)
  end
end

-- The live servers; expired ones are removed.
local function live()
  step_back()
  redis.call('ZREMRANGEBYSCORE', CALLS, '-inf', NOW)
  redis.call('ZREMRANGEBYSCORE', USERS, '-inf', NOW)
  local servers, flat = {}, redis.call('HGETALL', SERVERS)
  for i = 2, #flat, 2 do
    local server = cjson.decode(flat[i])
    if gone(server) then forget(server.id)
    else
      server.in_flight = #calls(server.id)
      servers[#servers + 1] = server
    end
  end
  return servers
end

-- The hash expires with its last server, so nothing stays behind when all hosts are killed.
local function keep(server)
  redis.call('HSET', SERVERS, server.id, cjson.encode(server))
  if redis.call('PTTL', SERVERS) < server.lapses - NOW then redis.call('PEXPIREAT', SERVERS, server.lapses) end
end

local function outlive(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end
