-- Where a turn stands.
-- KEYS 1 conversation · 2 mailbox · 3 events · 4 result  ARGV 1 turn
-- Returns {finished|running|waiting|gone|unknown, place in the mailbox from 1 or 0, final event or '', last event id}.
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local id = last and last[1] or '0-0'
local final = redis.call('GET', KEYS[4])
if final then return { 'finished', 0, final, id } end
local state = redis.call('HMGET', KEYS[1], 'cur', 'seq', 'cseq')
if state[1] == ARGV[1] then return { 'running', 0, '', id } end
local place = redis.call('LPOS', KEYS[2], ARGV[1])
if place then return { 'waiting', place + 1, '', id } end
local number = tonumber(string.match(ARGV[1], '^c?(%d+)$') or -1)
local given = tonumber((string.sub(ARGV[1], 1, 1) == 'c' and state[3] or state[2]) or 0)
if string.sub(ARGV[1], 1, 1) == 'c' and number > given - 4 and number <= given then return { 'running', 0, '', id } end
return { number > 0 and number <= given and 'gone' or 'unknown', 0, '', id }
