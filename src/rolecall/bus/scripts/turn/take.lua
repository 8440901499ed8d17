-- Lease entries for the free slots of this process, and begin them.
--   begun: entries that a blocking read brought to this process and that instances have begun: index in `streams`,
--     entry, conversation, turn, hop, when it was received or '', how quietly it begins or '', ms that its time stood
--     still, role, instance
-- Returns {what `take` in lib/take.lua returns, for each of `begun` {OK|FENCED|STALE, received, age, waited}}. A stale
-- entry of `begun` is dropped.
-- include: clock state trace take
-- args: process begun*
local verdicts = {}
for b = 1, #BEGUN, 10 do
  local k, id, name, turn, hop, received, quiet, paused, role, instance = unpack(BEGUN, b, b + 9)
  local stream, verdict, since, age, waited = STREAMS[tonumber(k)], 'FENCED', 0, 0, 0
  local rows = redis.pcall('XPENDING', stream, 'g', id, id, 1, PROCESS)
  if #rows == 1 then
    since, age, waited =
      begin(stream, id, 1, '', name, turn, hop, received ~= '' and received, quiet, paused, role, instance)
    verdict = since > 0 and 'OK' or 'STALE'
    if verdict == 'STALE' then
      redis.call('XACK', stream, 'g', id)
      redis.call('XDEL', stream, id)
    end
  end
  verdicts[#verdicts + 1] = { verdict, since, age, waited }
end
local taken = take()
flush()
return { taken, verdicts }
