-- End a turn from outside, at once, wherever its entry is. The old holder is fenced.
-- KEYS lib/guard with 1 = the stream named by `at`, or the deferred set · lib/finish
-- ARGV lib/guard with 1 = the entry id named by `at`, or 'z' · lib/finish, 9 final event as JSON
--      · 10 kind cancelled|error, then history, records
-- Returns OK | DONE (its answer stands, or no such turn) | MOVED (read `at` again).
-- include: guard finish
if redis.call('LPOS', MAILBOX, TURN) then
  redis.call('LREM', MAILBOX, 1, TURN)
  records(remember(11))
  finish(TURN, KEYS[17], ARGV[10], ARGV[9])
  redis.call('HSET', CONV, 'done', state[1] and tonumber(state[1]) - 1 or TURN)
  return 'OK'
end
if state[1] ~= TURN then return 'DONE' end
if not evict() then return 'MOVED' end
records(remember(11))
finish(TURN, KEYS[17], ARGV[10], ARGV[9])
release()
return 'OK'
