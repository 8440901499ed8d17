-- The model servers there are.
-- KEYS lib/served  ARGV none
-- Returns each as JSON, with its calls in flight and `age`, ms since it was started.
-- include: served
local shown = {}
for _, server in ipairs(live()) do
  server.age, server.idle = NOW - server.since, NOW - server.used
  shown[#shown + 1] = cjson.encode(server)
end
return shown
