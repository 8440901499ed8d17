-- End a turn from outside, wherever its entry is. The process that holds the entry is fenced.
--   stream, entry: the place in the conversation's `at`; final: the final event as JSON; kind: cancelled | error
-- Returns OK | DONE (it has ended already, or never existed) | MOVED (read `at` again).
-- include: clock state entry trace turn sleep finish
-- args: final kind remembered* records*
local waiting = redis.call('LPOS', MAILBOX, TURN)
if waiting then
  redis.call('LREM', MAILBOX, 1, TURN)
elseif running ~= TURN then
  return 'DONE'
elseif not evict() then
  return 'MOVED'
end
remember(REMEMBERED)
records(RECORDS)
finish(TURN, RESULT, KIND, FINAL)
if waiting then
  redis.call('HSET', CONVERSATION, 'done', running and tonumber(running) - 1 or TURN)
elseif ORDERED then
  release()
end
flush()
return 'OK'
