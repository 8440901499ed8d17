-- Settle an entry by putting its turn to sleep, without a slot or a lease.
--   wake_stream: where the turn continues; delay: ms from now; reason: shown to followers unless ''
--   quiet: '1' if the next start is not to be told; received: when the turn was received, 0 if unknown
-- Returns {OK|FENCED|STALE|CONTROL, what `take` in lib/take.lua returns}. CONTROL: a control turn cannot sleep; nothing is
-- written.
-- include: clock state entry trace turn sleep take
-- keys: active deferred wake_stream
-- args: delay envelope hop reason quiet received records*
if CONTROL then return { 'CONTROL', {} } end
local verdict = guard()
if verdict ~= 'OK' then return { verdict, {} } end
drop()
redis.call('HSET', JOURNAL, slept(TURN, 's'), WAKE_STREAM, slept(TURN, 'h'), HOP, slept(TURN, 'e'), ENVELOPE)
if QUIET == '1' then redis.call('HSET', JOURNAL, slept(TURN, 'q'), QUIETLY) end
redis.call('ZADD', DEFERRED, NOW + tonumber(DELAY), member(NAME, TURN))
moved(SLEEPING)
if REASON ~= '' and not CALL then event(TURN, 'queued', 'n', 0, 'x', REASON) end
records(RECORDS, received_at(RECEIVED))
local taken = take()
flush()
return { 'OK', taken }
