-- Forget a server that is gone; with a reason, its model is not started again for a while.
-- KEYS lib/served
-- ARGV 1 server · 2 why it could not be started, '' if it could · 3 ms its model is not tried again
-- Returns 1 if it was known.
-- include: directory
local raw = redis.call('HGET', SERVERS, ARGV[1])
if not raw then return 0 end
if ARGV[2] ~= '' then
  redis.call('HSET', FAILED, cjson.decode(raw).spec, string.format('%.0f|', NOW + tonumber(ARGV[3])) .. ARGV[2])
  outlive(FAILED, tonumber(ARGV[3]))
end
forget(ARGV[1])
return 1
