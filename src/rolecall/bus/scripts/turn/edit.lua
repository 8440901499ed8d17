-- Replace a message while its turn has not begun. The turn is released with the old text or with the new one.
--   version: rises with each edit; part: the message as a part of another turn; instance: of the front end
--   said: the message as the log shows it; max_bytes: limit for a turn with all its parts
--   apart: '1' for a command
-- Returns {EDITED|RUNNING|DONE|UNKNOWN|FULL|SHARED, turn}. A repeat, or an edit older than the current one, is EDITED and
-- changes nothing. SHARED, which changes nothing either: a command takes no place among the messages of a turn.
-- Confirmed by replicas.
-- include: clock state entry trace turn
-- keys: mailbox idempotency
-- args: version envelope part instance said max_bytes apart
local known = redis.call('GET', IDEMPOTENCY)
if not known then return { 'UNKNOWN', '' } end
local turn, digest, number, edited = string.match(known, '^([^|]*)|([^|]*)|?(%d*)|?(%d*)$')
local envelope, joined = unpack(redis.call('HMGET', JOURNAL, turn .. ':e', turn .. ':x'))
if not envelope then return { 'DONE', turn } end
if not redis.call('LPOS', MAILBOX, turn) and not (turn == running and held()) then return { 'RUNNING', turn } end
if tonumber(VERSION) <= (tonumber(edited) or -1) then return { 'EDITED', turn } end
local command = string.sub(redis.call('HGET', JOURNAL, turn .. ':g') or '', 1, 1) == ALONE
if joined and APART == '1' and (number ~= '' or not command) then return { 'SHARED', turn } end
local field, text, other = turn .. ':e', ENVELOPE, joined or ''
if number ~= '' then
  local parts = {}
  for line in string.gmatch(joined, '[^\n]+') do parts[#parts + 1] = string.gsub(line, ',$', '') end
  parts[tonumber(number)] = PART
  field, text, other = turn .. ':x', table.concat(parts, ',\n'), envelope
end
if joined and #text + #other > tonumber(MAX_BYTES) then return { 'FULL', turn } end
redis.call('HSET', JOURNAL, field, text)
if not joined and APART == '1' and not command then redis.call('HSET', JOURNAL, turn .. ':g', ALONE) end
redis.call('SET', IDEMPOTENCY, turn .. '|' .. digest .. '|' .. number .. '|' .. VERSION, 'KEEPTTL')
record(turn, 0, INSTANCE, 'NOTE', 'edited: ' .. SAID)
flush()
return { 'EDITED', turn }
