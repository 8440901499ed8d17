-- Cancel the running turn and every waiting one of a conversation, oldest first.
--   turn: the running turn or ''; stream, entry: the place in the conversation's `at`; final: the final event as JSON
--   waiting: the mailbox as the caller read it; results: of those turns
--   forget: '1' clears the history and makes the next message begin a session
-- Returns the number of turns ended, or -1 if the conversation moved on meanwhile (read it again).
-- include: clock state entry trace turn sleep finish
-- keys: results*
-- args: final instance forget waiting*
local waiting = redis.call('LRANGE', MAILBOX, 0, -1)
if (running or '') ~= TURN or #waiting ~= #WAITING then return -1 end
for i, turn in ipairs(WAITING) do if waiting[i] ~= turn then return -1 end end
if TURN ~= '' and not evict() then return -1 end
if TURN ~= '' then
  record(TURN, 0, INSTANCE, 'CANCELLED', 'by the user')
  finish(TURN, RESULT, 'cancelled', FINAL)
end
redis.call('DEL', MAILBOX)
for i, turn in ipairs(WAITING) do
  record(turn, 0, INSTANCE, 'CANCELLED', 'by the user, before it began')
  finish(turn, RESULTS[i], 'cancelled', FINAL)
end
if FORGET == '1' then
  forget()
  event('', 'cleared', 'x', newest or '0')
end
if TURN ~= '' then release() elseif FORGET == '1' then rest() end
flush()
return #WAITING + (TURN ~= '' and 1 or 0)
