-- Accept a user's message in place of what runs for the same user, which ends now: its answer is "stopped", its holder
-- is fenced. What another user asked goes on. Otherwise as ADMIT.
-- KEYS lib/guard with 1 = the stream named by `at`, or the deferred set · lib/finish of the running turn · lib/admit
-- ARGV lib/guard with 1 = the entry id named by `at`, or 'z', 4 = the running turn or '' · lib/finish · lib/admit
--      · 30 final event as JSON, then history, records
-- Returns what ADMIT does, or MOVED in place of an outcome: the conversation moved on meanwhile (read it again).
-- include: guard finish admit
local answer = known()
if answer then return answer end
local turn = host()
if turn then return join(turn) end
if (state[1] or '') ~= TURN then return { 'MOVED', '', 0, NOW, '' } end
local own = TURN ~= '' and redis.call('HGET', JOURNAL, TURN .. ':u') == USER
answer = refused(own and 1 or 0)
if answer then return answer end
if own then
  if not evict() then return { 'MOVED', '', 0, NOW, '' } end
  records(remember(31))
  finish(TURN, KEYS[17], 'cancelled', ARGV[30])
  release()
  state[1] = redis.call('HGET', CONV, 'cur')
end
return accept()
