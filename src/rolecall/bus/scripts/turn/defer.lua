-- Settle an entry by putting its turn to sleep, without a slot or a lease.
--   wake_stream: where the turn continues; delay: ms from now; reason: shown to followers unless ''
--   quiet: '1' if the next start is not to be told; received: when the turn was received, 0 if unknown
-- Returns {OK|FENCED|STALE|CONTROL, what `take` in lib/take.lua returns}. CONTROL: a control turn cannot sleep; nothing is
-- written.
-- include: clock state entry trace turn take
-- keys: deferred wake_stream
-- args: delay envelope hop reason quiet received records*
if CONTROL then return { 'CONTROL', {} } end
local verdict = guard()
if verdict ~= 'OK' then return { verdict, {} } end
drop()
redis.call('HSET', JOURNAL, 'defer:s', WAKE_STREAM, 'defer:h', HOP, 'defer:e', ENVELOPE)
if QUIET == '1' then redis.call('HSET', JOURNAL, 'defer:q', 1) end
redis.call('ZADD', DEFERRED, NOW + tonumber(DELAY), NAME)
moved(SLEEPING)
if REASON ~= '' then event(TURN, 'queued', 'n', 0, 'x', REASON) end
records(RECORDS, received_at(RECEIVED))
local taken = take()
flush()
return { 'OK', taken }
