-- Give a sign of life of a call in flight, or end it.
-- KEYS lib/served  ARGV 1 server · 2 call · 3 ms until the next sign of life, 0 ends it
-- Returns 1 if the call was known.
-- include: directory
local member, known = ARGV[1] .. ' ' .. ARGV[2], redis.call('ZSCORE', CALLS, ARGV[1] .. ' ' .. ARGV[2])
if not known then return 0 end
if ARGV[3] ~= '0' then
  redis.call('ZADD', CALLS, NOW + tonumber(ARGV[3]), member)
  outlive(CALLS, tonumber(ARGV[3]))
  return 1
end
redis.call('ZREM', CALLS, member)
for _, server in ipairs(live()) do
  if server.id == ARGV[1] then
    server.used = NOW
    keep(server)
  end
end
return 1
