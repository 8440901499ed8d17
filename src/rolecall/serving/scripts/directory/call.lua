-- Extend a call in flight, or end it.
--   lasts: ms until the next extension, 0 ends the call
-- Returns 1 if the call was known.
-- include: clock directory
-- args: server call lasts
local member, known = SERVER .. ' ' .. CALL, redis.call('ZSCORE', CALLS, SERVER .. ' ' .. CALL)
if not known then return 0 end
if LASTS ~= '0' then
  redis.call('ZADD', CALLS, NOW + tonumber(LASTS), member)
  outlive(CALLS, tonumber(LASTS))
  return 1
end
redis.call('ZREM', CALLS, member)
for _, server in ipairs(live()) do
  if server.id == SERVER then
    server.used = NOW
    keep(server)
  end
end
return 1
