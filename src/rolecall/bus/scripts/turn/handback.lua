-- Return an entry that was taken but not begun: anyone may take it at once, and this delivery does not count.
-- KEYS 1 its stream · 2 conversation  ARGV 1 entry id · 2 process · 3 lease in ms · 4 turn
-- Returns OK | FENCED.
local row = redis.pcall('XPENDING', KEYS[1], 'g', ARGV[1], ARGV[1], 1, ARGV[2])
if row.err or #row == 0 then return 'FENCED' end
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
-- One that others died of keeps its place in the pending list, for the count is there.
if row[1][4] > 1 and entry then
  redis.call('XCLAIM', KEYS[1], 'g', ARGV[2], 0, ARGV[1], 'IDLE', ARGV[3] + 1, 'RETRYCOUNT', row[1][4] - 1, 'JUSTID')
  return 'OK'
end
redis.call('XACK', KEYS[1], 'g', ARGV[1])
redis.call('XDEL', KEYS[1], ARGV[1])
if not entry then return 'OK' end
local id = redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
local state = redis.call('HMGET', KEYS[2], 'cur', 'at')
if state[1] == ARGV[4] and state[2] == KEYS[1] .. '|' .. ARGV[1] then
  redis.call('HSET', KEYS[2], 'at', KEYS[1] .. '|' .. id)
end
return 'OK'
