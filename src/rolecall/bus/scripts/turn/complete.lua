-- Settle an entry by completing its turn: reply, history, preferences, log, and the release of the next turn.
--   final: the final event as JSON; forget: '1' clears the history and makes the next message begin a session
-- Returns OK | FENCED | STALE. A repeat after a lost reply is FENCED.
-- include: clock state entry turn finish
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
if FORGET == '1' then forget() end
finish(TURN, RESULT, 'final', FINAL)
if not CONTROL then release() end
return 'OK'
