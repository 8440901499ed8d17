-- Settle an entry by putting its turn to sleep, without a slot or a lease.
--   wake_stream: where the turn continues; delay: ms from now; reason: shown to followers unless ''
-- Returns OK | FENCED | STALE | CONTROL (a control turn cannot sleep; nothing is written).
-- include: clock state entry turn
-- keys: deferred wake_stream
-- args: delay envelope hop reason records*
if CONTROL then return 'CONTROL' end
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
redis.call('HSET', JOURNAL, 'defer:s', WAKE_STREAM, 'defer:h', HOP, 'defer:e', ENVELOPE)
redis.call('ZADD', DEFERRED, NOW + tonumber(DELAY), NAME)
moved(SLEEPING)
if REASON ~= '' then event(TURN, 'queued', 'n', 0, 'x', REASON) end
records(RECORDS)
return 'OK'
