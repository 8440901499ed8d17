-- Accept a user's message and cancel what runs for the same user; its holder is fenced. Another user's turn goes on.
-- Otherwise the same as ADMIT.
--   turn: the running turn or ''; stream, entry: the place in the conversation's `at`; final: its final event as JSON
-- Returns what ADMIT returns, or MOVED as the outcome: the conversation moved on meanwhile (read it again).
-- Confirmed by replicas.
-- include: clock state entry trace turn sleep finish admit
-- args: final remembered* records*
local answer = known()
if answer then return answer end
local turn = host()
if turn then return join(turn) end
if (running or '') ~= TURN then return { 'MOVED', '', 0, NOW, '' } end
local same = TURN ~= '' and redis.call('HGET', JOURNAL, TURN .. ':u') == PRINCIPAL
answer = refused(same and 1 or 0)
if answer then return answer end
if same then
  if not evict() then return { 'MOVED', '', 0, NOW, '' } end
  remember(REMEMBERED)
  records(RECORDS)
  finish(TURN, RESULT, 'cancelled', FINAL)
  release()
  running = redis.call('HGET', CONVERSATION, 'cur')
end
return accept()
