-- Remove a server.
--   why: it could not be started, or ''; retry_ms: how long its model is not started again then
-- Returns 1 if it was known.
-- include: clock directory
-- args: server why retry_ms
local raw = redis.call('HGET', SERVERS, SERVER)
if not raw then return 0 end
if WHY ~= '' then
  redis.call('HSET', FAILED, cjson.decode(raw).spec, string.format('%.0f|', NOW + tonumber(RETRY_MS)) .. WHY)
  outlive(FAILED, tonumber(RETRY_MS))
end
forget(SERVER)
return 1
