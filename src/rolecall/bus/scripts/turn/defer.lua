-- Settle an entry by putting its turn to sleep until a time: no slot and no lease is held meanwhile.
-- KEYS lib/guard, 7 deferred · 8 stream to wake up in
-- ARGV lib/guard, 6 ms from now · 7 envelope · 8 hop · 9 reason for the user, '' tells nothing, then records
-- Returns OK | FENCED | STALE | CONTROL (a control turn cannot sleep; nothing is written).
-- include: guard
if CONTROL then return 'CONTROL' end
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
redis.call('HSET', JOURNAL, 'defer:s', KEYS[8], 'defer:h', ARGV[8], 'defer:e', ARGV[7])
redis.call('ZADD', KEYS[7], NOW + tonumber(ARGV[6]), NAME)
moved('z')
if ARGV[9] ~= '' then event(TURN, 'queued', 'n', 0, 'x', ARGV[9]) end
records(10)
return 'OK'
