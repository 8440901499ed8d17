-- Settle an entry by giving its turn up: a dead letter, one apology to the user, and the release of the next turn.
--   final: the final event as JSON; received: when the turn was received, 0 if unknown
-- Returns {OK|FENCED|STALE, what `take` in lib/take.lua returns}. A repeat after a lost reply is FENCED.
-- include: clock state entry trace turn sleep finish take
-- keys: dead
-- args: final reason deliveries envelope hop received remembered* records*
local verdict = guard()
if verdict ~= 'OK' then return { verdict, {} } end
drop()
redis.call('XADD', DEAD, 'MAXLEN', '~', 1000, '*', 'c', NAME, 't', TURN, 'h', HOP, 'e', ENVELOPE,
  'why', REASON, 'n', DELIVERIES, 's', STREAM, 'ms', NOW)
remember(REMEMBERED)
records(RECORDS, received_at(RECEIVED))
finish(TURN, RESULT, 'error', FINAL)
if ORDERED then release() end
local taken = take()
flush()
return { 'OK', taken }
