-- Where a turn stands.
-- KEYS 1 conversation · 2 mailbox · 3 events · 4 result · 5 journal  ARGV 1 turn
-- Returns {finished|running|waiting|gone|unknown, place in the mailbox from 1 or 0, final event or '', last event id,
--      id of the final event or ''}.
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local id = last and last[1] or '0-0'
local result = redis.call('GET', KEYS[4])
if result then
  local at, final = string.match(result, '^(%S+) (.*)$')
  return { 'finished', 0, final, id, at }
end
local place = redis.call('LPOS', KEYS[2], ARGV[1])
if place then return { 'waiting', place + 1, '', id, '' } end
if redis.call('HEXISTS', KEYS[5], ARGV[1] .. ':e') == 1 then return { 'running', 0, '', id, '' } end
local lane, number = string.match(ARGV[1], '^(c?)(%d+)$')
local given = redis.call('HGET', KEYS[1], lane == 'c' and 'cseq' or 'seq')
local known = number and given and tonumber(number) > 0 and tonumber(number) <= tonumber(given)
return { known and 'gone' or 'unknown', 0, '', id, '' }
