-- Settle an entry by ending its turn: answer, history, log and the release of the next turn, in one step.
-- Returns OK | FENCED | STALE. After a lost reply the repeat says FENCED: it had happened.
-- include: state turn finish
-- args: final tokens_in tokens_out forget remembered* changes* records*
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
local user = redis.call('HGET', JOURNAL, TURN .. ':u') or ''
if TOKENS_IN ~= '0' then count(user, 'in', TOKENS_IN) end
if TOKENS_OUT ~= '0' then count(user, 'out', TOKENS_OUT) end
remember(REMEMBERED)
change(CHANGES)
records(RECORDS)
if FORGET == '1' then
  redis.call('DEL', HISTORY)
  redis.call('HDEL', CONVERSATION, 'last')
end
finish(TURN, RESULT, 'final', FINAL)
if not CONTROL then release() end
return 'OK'
