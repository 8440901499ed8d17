-- Accept a user's message in place of what runs for the same user, which ends now: its answer is "stopped", its holder
-- is fenced. What another user asked goes on. Otherwise as ADMIT.
-- Returns what ADMIT does, or MOVED in place of an outcome: the conversation moved on meanwhile (read it again).
-- include: state turn finish admit
-- args: final remembered* records*
local answer = known()
if answer then return answer end
local turn = host()
if turn then return join(turn) end
if (state[1] or '') ~= TURN then return { 'MOVED', '', 0, NOW, '' } end
local own = TURN ~= '' and redis.call('HGET', JOURNAL, TURN .. ':u') == PRINCIPAL
answer = refused(own and 1 or 0)
if answer then return answer end
if own then
  if not evict() then return { 'MOVED', '', 0, NOW, '' } end
  remember(REMEMBERED)
  records(RECORDS)
  finish(TURN, RESULT, 'cancelled', FINAL)
  release()
  state[1] = redis.call('HGET', CONVERSATION, 'cur')
end
return accept()
