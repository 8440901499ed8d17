-- Replace what a message says while its turn has not begun. Nothing comes between the look and the change: what is
-- released is either the old text or the new one.
-- Returns {EDITED|RUNNING|DONE|UNKNOWN|FULL, turn}. A repeat, or an older edit than the one that stands, is EDITED and
-- changes nothing.
-- include: state turn
-- keys: mailbox idempotency
-- args: version envelope part instance said max_bytes
local known = redis.call('GET', IDEMPOTENCY)
if not known then return { 'UNKNOWN', '' } end
local turn, digest, part, edited = string.match(known, '^([^|]*)|([^|]*)|?(%d*)|?(%d*)$')
local job = redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x')
if not job[1] then return { 'DONE', turn } end
if not redis.call('LPOS', MAILBOX, turn) and not (turn == state[1] and held()) then return { 'RUNNING', turn } end
if tonumber(VERSION) <= (tonumber(edited) or -1) then return { 'EDITED', turn } end
local field, text, other = turn .. ':e', ENVELOPE, job[2] or ''
if part ~= '' then
  local parts = {}
  for line in string.gmatch(job[2], '[^\n]+') do parts[#parts + 1] = string.gsub(line, ',$', '') end
  parts[tonumber(part)] = PART
  field, text, other = turn .. ':x', table.concat(parts, ',\n'), job[1]
end
if job[2] and #text + #other > tonumber(MAX_BYTES) then return { 'FULL', turn } end
redis.call('HSET', JOURNAL, field, text)
redis.call('SET', IDEMPOTENCY, turn .. '|' .. digest .. '|' .. part .. '|' .. VERSION, 'KEEPTTL')
record(turn, 0, INSTANCE, 'NOTE', 'edited: ' .. SAID)
return { 'EDITED', turn }
