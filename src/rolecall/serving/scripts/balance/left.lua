-- Tell how a call or a probe of one server of a model went.
-- KEYS 1 calls in flight · 2 what is known of the servers (see serving_pick)
-- ARGV 1 call, '' for a probe · 2 server · 3 OK | ALIVE (a probe was answered) | FAILED | NOTHING · 4 why
--      5 ms the server asks to wait, -1 if it does not say · 6 longest ms it is left out at a time
-- Returns 1 while the server is left out.
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
local server, outcome = ARGV[2], ARGV[3]
local function field(name) return server .. ' ' .. name end
if ARGV[1] ~= '' then redis.call('ZREM', KEYS[1], server .. ' ' .. ARGV[1]) end

if outcome == 'OK' then redis.call('HDEL', KEYS[2], field('until'), field('opens'), field('why'), field('probe'))
elseif outcome == 'ALIVE' then redis.call('HDEL', KEYS[2], field('until'), field('probe'))
elseif outcome == 'FAILED' then
  local till = tonumber(redis.call('HGET', KEYS[2], field('until')) or 0)
  -- Calls that were under way together fail together: only the first of them counts.
  if till == 0 or ARGV[1] == '' then
    local opens = redis.call('HINCRBY', KEYS[2], field('opens'), 1)
    local pause = tonumber(ARGV[5])
    if pause < 0 then pause = math.min(tonumber(ARGV[6]), 250 * 2 ^ math.min(opens - 1, 16)) end
    till = NOW + pause
    redis.call('HSET', KEYS[2], field('until'), string.format('%.0f', till), field('why'), ARGV[4])
  end
  redis.call('HDEL', KEYS[2], field('probe'))
end
redis.call('PEXPIRE', KEYS[2], 86400000)
return redis.call('HEXISTS', KEYS[2], field('until'))
