-- Report the outcome of a call or a probe of one of a model's servers.
--   calls, known: see pick; call: '' for a probe; outcome: OK | ALIVE (a probe was answered) | FAILED | NOTHING
--   wait: ms that the server asks to wait, -1 if it does not say; longest: ms it is left out at a time
-- Returns 1 while the server is left out.
-- include: clock
-- keys: calls known
-- args: call server outcome why wait longest
local server, outcome = SERVER, OUTCOME
local function field(name) return server .. ' ' .. name end
if CALL ~= '' then redis.call('ZREM', CALLS, server .. ' ' .. CALL) end

if outcome == 'OK' then redis.call('HDEL', KNOWN, field('until'), field('opens'), field('why'), field('probe'))
elseif outcome == 'ALIVE' then redis.call('HDEL', KNOWN, field('until'), field('probe'))
elseif outcome == 'FAILED' then
  local till = tonumber(redis.call('HGET', KNOWN, field('until')) or 0)
  -- Calls in flight together fail together; only the first one counts.
  if till == 0 or CALL == '' then
    local opens = redis.call('HINCRBY', KNOWN, field('opens'), 1)
    local pause = tonumber(WAIT)
    if pause < 0 then pause = math.min(tonumber(LONGEST), 250 * 2 ^ math.min(opens - 1, 16)) end
    till = NOW + pause
    redis.call('HSET', KNOWN, field('until'), string.format('%.0f', till), field('why'), WHY)
  end
  redis.call('HDEL', KNOWN, field('probe'))
end
redis.call('PEXPIRE', KNOWN, 86400000)
return redis.call('HEXISTS', KNOWN, field('until'))
