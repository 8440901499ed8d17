-- Tell how a call of a model went, count what it used, and hear who may be woken.
-- KEYS lib/model, 6 what is spent today
-- ARGV lib/model, 3 ANSWERING (the first word of a probe; the call goes on) | OK | FAILED | LIMITED | NOTHING
--      | AWAY (it is known to be away for the ms in 7)
--      4 slice · 5 tokens reserved · 6 tokens used, -1 not known · 7 ms the provider asks to wait, -1 if it does not say
--      8 failures in a row that open the breaker · 9 why · 10 longest ms between two probes
--      11 tokens expected of it · 12 how many counters, then field and by
-- Returns {1 while the model is taken to be away, ms to the caller's next look, conversations to wake …}
-- include: model
local outcome = ARGV[3]
local probe = redis.call('HGET', STATE, 'probe') == CALL
if outcome ~= 'ANSWERING' then redis.call('ZREM', BUSY, CALL) end

local used = tonumber(ARGV[6])
if used >= 0 then
  local field = ARGV[4] .. ':t'
  if redis.call('HEXISTS', USE, field) == 1 then redis.call('HINCRBY', USE, field, used - tonumber(ARGV[5])) end
  local scale = tonumber(redis.call('HGET', STATE, 'scale') or 1)
  redis.call('HSET', STATE, 'scale', 0.8 * scale + 0.2 * used / math.max(1, tonumber(ARGV[11])))
end
for i = 13, 12 + tonumber(ARGV[12]) * 2, 2 do redis.call('HINCRBY', KEYS[6], ARGV[i], ARGV[i + 1]) end
if ARGV[12] ~= '0' then redis.call('EXPIRE', KEYS[6], 691200) end

local function pause(most, n) return math.min(most, 250 * 2 ^ math.min(n, 16)) end
local returned, wait = false, 0
if outcome == 'OK' or outcome == 'ANSWERING' then
  returned = answered()
  redis.call('HDEL', STATE, 'limits')
elseif outcome == 'FAILED' then
  if probe or redis.call('HINCRBY', STATE, 'fails', 1) >= tonumber(ARGV[8]) or get('open') == 1 then
    local n = redis.call('HINCRBY', STATE, 'opens', probe and 1 or 0)
    local till = math.floor(NOW + pause(tonumber(ARGV[10]), n))
    redis.call('HSET', STATE, 'open', 1, 'until', math.max(till, get('until')), 'why', ARGV[9])
    wait = next_look(500)
  end
elseif outcome == 'AWAY' then
  local till = math.max(math.floor(NOW + tonumber(ARGV[7])), get('until'))
  redis.call('HSET', STATE, 'open', 1, 'until', till, 'why', ARGV[9])
  wait = next_look(500)
elseif outcome == 'LIMITED' then
  returned = answered()
  local asked = tonumber(ARGV[7])
  if asked < 0 then asked = pause(60000, redis.call('HINCRBY', STATE, 'limits', 1) + 1) end
  redis.call('HSET', STATE, 'until', math.max(get('until'), math.floor(NOW + asked)), 'why', ARGV[9])
  wait = next_look(50)
end
if probe and outcome ~= 'ANSWERING' then redis.call('HDEL', STATE, 'probe') end
redis.call('EXPIRE', STATE, 86400)
local names = woken(returned)
table.insert(names, 1, wait)
table.insert(names, 1, get('open'))
return names
