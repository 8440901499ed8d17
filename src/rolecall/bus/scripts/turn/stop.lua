-- End the running turn and every waiting one of a conversation, oldest first; on request forget its history.
-- Returns the number of turns ended, or -1 when the conversation moved on meanwhile (read it again).
-- include: state turn finish
-- keys: results*
-- args: final instance forget waiting* remembered*
local waiting = redis.call('LRANGE', MAILBOX, 0, -1)
if (state[1] or '') ~= TURN or #waiting ~= #WAITING then return -1 end
for i, turn in ipairs(WAITING) do if waiting[i] ~= turn then return -1 end end
if TURN ~= '' and not evict() then return -1 end
if TURN ~= '' then
  record(TURN, 0, INSTANCE, 'CANCELLED', 'by the user')
  remember(REMEMBERED)
  finish(TURN, RESULT, 'cancelled', FINAL)
end
redis.call('DEL', MAILBOX)
for i, turn in ipairs(WAITING) do
  record(turn, 0, INSTANCE, 'CANCELLED', 'by the user, before it began')
  finish(turn, RESULTS[i], 'cancelled', FINAL)
end
if FORGET == '1' then
  redis.call('DEL', HISTORY)
  redis.call('HDEL', CONVERSATION, 'last')
end
if TURN ~= '' then release() end
return #WAITING + (TURN ~= '' and 1 or 0)
