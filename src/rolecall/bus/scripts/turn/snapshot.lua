-- Where a turn stands.
-- Returns {finished|running|waiting|gone|unknown, place in the mailbox from 1 or 0, final event or '', last event id,
--      id of the final event or ''}.
-- include: state
-- keys: conversation mailbox events result journal
-- args: turn
local last = redis.call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1)[1]
local id = last and last[1] or '0-0'
local result = redis.call('GET', RESULT)
if result then
  local at, final = string.match(result, '^(%S+) (.*)$')
  return { 'finished', 0, final, id, at }
end
local place = redis.call('LPOS', MAILBOX, TURN)
if place then return { 'waiting', place + 1, '', id, '' } end
if redis.call('HEXISTS', JOURNAL, TURN .. ':e') == 1 then
  local state = redis.call('HMGET', CONVERSATION, 'cur', 'at')
  if state[1] ~= TURN or state[2] ~= SLEEPING then return { 'running', 0, '', id, '' } end
  return { redis.call('HEXISTS', JOURNAL, 'defer:e') == 1 and 'deferred' or 'held', 0, '', id, '' }
end
local lane, number = string.match(TURN, '^(c?)(%d+)$')
local given = redis.call('HGET', CONVERSATION, lane == 'c' and 'cseq' or 'seq')
local known = number and given and tonumber(number) > 0 and tonumber(number) <= tonumber(given)
return { known and 'gone' or 'unknown', 0, '', id, '' }
