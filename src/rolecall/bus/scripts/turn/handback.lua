-- Return an entry that was taken but not begun: anyone may take it at once, and this delivery does not count.
-- Returns OK | FENCED.
-- keys: stream conversation
-- args: entry process lease turn
local row = redis.pcall('XPENDING', STREAM, 'g', ENTRY, ENTRY, 1, PROCESS)
if row.err or #row == 0 then return 'FENCED' end
local entry = redis.call('XRANGE', STREAM, ENTRY, ENTRY)[1]
-- One that others died of keeps its place in the pending list, for the count is there.
if row[1][4] > 1 and entry then
  redis.call('XCLAIM', STREAM, 'g', PROCESS, 0, ENTRY, 'IDLE', LEASE + 1, 'RETRYCOUNT', row[1][4] - 1, 'JUSTID')
  return 'OK'
end
redis.call('XACK', STREAM, 'g', ENTRY)
redis.call('XDEL', STREAM, ENTRY)
if not entry then return 'OK' end
local id = redis.call('XADD', STREAM, '*', unpack(entry[2]))
local state = redis.call('HMGET', CONVERSATION, 'cur', 'at')
if state[1] == TURN and state[2] == STREAM .. '|' .. ENTRY then
  redis.call('HSET', CONVERSATION, 'at', STREAM .. '|' .. id)
end
return 'OK'
