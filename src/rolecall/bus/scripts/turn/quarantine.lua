-- Put an entry that belongs to no turn aside. It has no effect on any conversation, whatever it claims.
-- KEYS 1 stream · 2 dead letters  ARGV 1 entry id · 2 process · 3 reason · 4 delivery count · 5 its fields as JSON
-- Returns OK | FENCED.
local row = redis.pcall('XPENDING', KEYS[1], 'g', ARGV[1], ARGV[1], 1, ARGV[2])
if row.err or #row == 0 then return 'FENCED' end
redis.call('XACK', KEYS[1], 'g', ARGV[1])
redis.call('XDEL', KEYS[1], ARGV[1])
local clock = redis.call('TIME')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'c', '', 't', '', 'h', 0, 'e', ARGV[5],
  'why', ARGV[3], 'n', ARGV[4], 's', KEYS[1], 'ms', clock[1] * 1000 + math.floor(clock[2] / 1000))
return 'OK'
