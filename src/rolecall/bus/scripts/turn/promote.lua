-- Wake a turn that is held, deferred or suspended and due. Any number of processes may run this.
--   turn: '' for the running turn of the conversation, else a call; early: '1' wakes a deferred or held turn before its
--     time, '2' also a suspended one, as if its time had come
--   held: if not '', only this turn is woken, at once, and only if it is held and first in line
--   wake_stream: the one that the caller read in the journal; expected: what the clock should show; the earlier time
--     counts
-- Returns OK | EARLY | MOVED (the journal names another stream now) | GONE.
-- include: clock state sleep
-- keys: deferred active conversation journal wake_stream
-- args: name turn early expected held
local running, at = unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at'))
if TURN ~= '' then running, at = TURN, redis.call('HGET', JOURNAL, TURN .. ':a') end
local sleeper = TURN == '' and NAME or member(NAME, TURN)
local due = redis.call('ZSCORE', DEFERRED, sleeper)
if not due then return 'GONE' end
due = tonumber(due)
if HELD ~= '' then
  if running ~= HELD or redis.call('HEXISTS', JOURNAL, slept(running, 'e')) == 1 then return 'GONE' end
  EARLY = '1'
end
local early = due > math.min(NOW, tonumber(EXPECTED))
if early and EARLY == '0' then return 'EARLY' end
local stream = running and redis.call('HGET', JOURNAL, slept(running, 's'))
if stream and stream ~= WAKE_STREAM then return 'MOVED' end
if not stream or at ~= SLEEPING then
  redis.call('ZREM', DEFERRED, sleeper)
  redis.call('ZREM', SUSPENDED, sleeper)
  return 'GONE'
end
if early and EARLY == '1' and redis.call('HEXISTS', JOURNAL, slept(running, 'w')) == 1 then return 'EARLY' end
-- What it waited for until then is due, even if the clock was set back since.
wake(running, math.max(NOW, due, tonumber(redis.call('HGET', JOURNAL, slept(running, 'd')) or 0)))
return 'OK'
