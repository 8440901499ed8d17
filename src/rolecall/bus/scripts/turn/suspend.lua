-- Settle an entry by suspending its turn until steps that it waits for are finished, without a slot or a lease.
--   groups: keys of steps with blanks between them; when all of one group are finished, the turn continues
--   due: ms since the epoch at which it continues in any case, or ''
--   still: '1' if the time of the turn stands still until then; waits: what it waits for, for people
--   wake_stream: where the turn continues; received: when the turn was received, 0 if unknown
-- Returns {OK|READY|FENCED|STALE|CONTROL, what `take` in lib/take.lua returns}. READY, with the server's clock in ms behind
-- it: there is nothing to wait for. CONTROL: a control turn cannot sleep. Only OK writes anything.
-- include: clock state entry trace turn sleep take
-- keys: active deferred wake_stream steps
-- args: envelope hop due still waits received groups* records*
if CONTROL then return { 'CONTROL', {} } end
local verdict = guard()
if verdict ~= 'OK' then return { verdict, {} } end
local due = tonumber(DUE)
if due and due <= NOW then return { 'READY ' .. NOW, {} } end
for _, group in ipairs(GROUPS) do
  if finished(STEPS, group) then return { 'READY ' .. NOW, {} } end
end
drop()
redis.call('HSET', JOURNAL, slept(TURN, 's'), WAKE_STREAM, slept(TURN, 'h'), HOP, slept(TURN, 'e'), ENVELOPE,
  slept(TURN, 'q'), RESUMED, slept(TURN, 'w'), table.concat(GROUPS, ';'), slept(TURN, 't'), WAITS, slept(TURN, 'n'), NOW, slept(TURN, 'd'), due or 0)
redis.call('ZADD', DEFERRED, due or '+inf', member(NAME, TURN))
redis.call('ZADD', SUSPENDED, NOW, member(NAME, TURN))
if due and STILL == '1' then
  extend(TURN, due - NOW)
  redis.call('HSET', JOURNAL, slept(TURN, 'p'), due)
end
moved(SLEEPING)
records(RECORDS, received_at(RECEIVED))
local taken = take()
flush()
return { 'OK', taken }
