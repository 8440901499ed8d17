-- Read where a turn stands.
-- Returns {finished|waiting|running|held|deferred|suspended|gone|unknown, place in the mailbox from 1 or 0, final event or '',
-- newest event id of the conversation, id of the final event or ''}.
-- include: state
-- keys: conversation mailbox events result journal
-- args: turn
local last = redis.call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1)[1]
local id = last and last[1] or '0-0'
local result = redis.call('GET', RESULT)
if result then
  local final_id, final = string.match(result, '^(%S+) (.*)$')
  return { 'finished', 0, final, id, final_id }
end
local ahead = redis.call('LPOS', MAILBOX, TURN)
if ahead then return { 'waiting', ahead + 1, '', id, '' } end
if redis.call('HEXISTS', JOURNAL, TURN .. ':e') == 1 then
  local running, at = unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at'))
  if running ~= TURN or at ~= SLEEPING then return { 'running', 0, '', id, '' } end
  local envelope, waits = unpack(redis.call('HMGET', JOURNAL, 'defer:e', 'defer:w'))
  return { waits and 'suspended' or envelope and 'deferred' or 'held', 0, '', id, '' }
end
local number = tonumber(string.match(TURN, '^c?(%d+)$'))
local newest = tonumber(redis.call('HGET', CONVERSATION, is_control(TURN) and 'cseq' or 'seq'))
local known = number and newest and number > 0 and number <= newest
return { known and 'gone' or 'unknown', 0, '', id, '' }
