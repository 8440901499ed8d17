-- End the running turn and every waiting one of a conversation, oldest first; on request forget its history.
-- KEYS lib/guard with 1 as in cancel · lib/finish, 18… results of the waiting turns, in mailbox order
-- ARGV lib/guard with 4 = the running turn or '' · lib/finish, 9 final event as JSON · 10 instance
--      · 11 '1' forgets the history and lets the next message begin a new session · 12 n, then n waiting turns in mailbox order, then history
-- Returns the number of turns ended, or -1 when the conversation moved on meanwhile (read it again).
-- include: guard finish
local n = tonumber(ARGV[12])
local waiting = redis.call('LRANGE', MAILBOX, 0, -1)
if (state[1] or '') ~= TURN or #waiting ~= n then return -1 end
for i = 1, n do if waiting[i] ~= ARGV[12 + i] then return -1 end end
if TURN ~= '' and not evict() then return -1 end
if TURN ~= '' then
  record(TURN, 0, ARGV[10], 'CANCELLED', 'by the user')
  remember(13 + n)
  finish(TURN, KEYS[17], 'cancelled', ARGV[9])
end
redis.call('DEL', MAILBOX)
for i = 1, n do
  record(waiting[i], 0, ARGV[10], 'CANCELLED', 'by the user, before it began')
  finish(waiting[i], KEYS[17 + i], 'cancelled', ARGV[9])
end
if ARGV[11] == '1' then
  redis.call('DEL', HISTORY)
  redis.call('HDEL', CONV, 'last')
end
if TURN ~= '' then release() end
return n + (TURN ~= '' and 1 or 0)
