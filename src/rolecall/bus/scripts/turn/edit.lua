-- Replace what a message says while its turn has not begun. Nothing comes between the look and the change: what is
-- released is either the old text or the new one.
-- KEYS lib/guard with 1 any of the shard · 7 mailbox · 8 idempotency
-- ARGV lib/guard with 4 '' · 6 rises with each edit · 7 envelope · 8 the same as a part of another turn
--      · 9 front end's instance · 10 text for the log · 11 most bytes of a turn with parts
-- Returns {EDITED|RUNNING|DONE|UNKNOWN|FULL, turn}. A repeat, or an older edit than the one that stands, is EDITED and
-- changes nothing.
-- include: guard
local known = redis.call('GET', KEYS[8])
if not known then return { 'UNKNOWN', '' } end
local turn, digest, part, edited = string.match(known, '^([^|]*)|([^|]*)|?(%d*)|?(%d*)$')
local job = redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x')
if not job[1] then return { 'DONE', turn } end
if not redis.call('LPOS', KEYS[7], turn) and not (turn == state[1] and held()) then return { 'RUNNING', turn } end
if tonumber(ARGV[6]) <= (tonumber(edited) or -1) then return { 'EDITED', turn } end
local field, text, other = turn .. ':e', ARGV[7], job[2] or ''
if part ~= '' then
  local parts = {}
  for line in string.gmatch(job[2], '[^\n]+') do parts[#parts + 1] = string.gsub(line, ',$', '') end
  parts[tonumber(part)] = ARGV[8]
  field, text, other = turn .. ':x', table.concat(parts, ',\n'), job[1]
end
if job[2] and #text + #other > tonumber(ARGV[11]) then return { 'FULL', turn } end
redis.call('HSET', JOURNAL, field, text)
redis.call('SET', KEYS[8], turn .. '|' .. digest .. '|' .. part .. '|' .. ARGV[6], 'KEEPTTL')
record(turn, 0, ARGV[9], 'NOTE', 'edited: ' .. ARGV[10])
return { 'EDITED', turn }
