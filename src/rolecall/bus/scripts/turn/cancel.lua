-- End a turn from outside, at once, wherever its entry is. The old holder is fenced.
-- Returns OK | DONE (its answer stands, or no such turn) | MOVED (read `at` again).
-- include: state turn finish
-- args: final kind remembered* records*
if redis.call('LPOS', MAILBOX, TURN) then
  redis.call('LREM', MAILBOX, 1, TURN)
  remember(REMEMBERED)
  records(RECORDS)
  finish(TURN, RESULT, KIND, FINAL)
  redis.call('HSET', CONVERSATION, 'done', state[1] and tonumber(state[1]) - 1 or TURN)
  return 'OK'
end
if state[1] ~= TURN then return 'DONE' end
if not evict() then return 'MOVED' end
remember(REMEMBERED)
records(RECORDS)
finish(TURN, RESULT, KIND, FINAL)
release()
return 'OK'
