-- Leave a call of a model: report its outcome, correct its quota, and learn which conversations to wake.
--   outcome: ANSWERING (the first token of a probe; the call goes on) | OK | FAILED
--     | LIMITED | NOTHING | AWAY (unavailable for `retry_after` ms)
--   slice, reserved: as `enter` returned them; used: tokens, -1 if unknown; expected: tokens
--   retry_after: ms that the provider asks to wait, -1 if it does not say; breaker_failures: in a row open the breaker
--   probe_ms: longest time between two probes
-- Returns {1 while the breaker is open, ms to the caller's next try, ms for which it has been open, conversations to wake …}.
-- include: clock model
-- args: outcome slice reserved used retry_after breaker_failures why probe_ms expected
local outcome = OUTCOME
local probe = state.probe == CALL
if outcome ~= 'ANSWERING' then redis.call('ZREM', BUSY, CALL) end

local used = tonumber(USED)
if used >= 0 and SLICE ~= '-1' then
  local field, more = SLICE .. ':t', used - tonumber(RESERVED)
  -- A slice that is still counted has what was reserved, one at least; of one that is not, nothing may stay.
  if redis.call('HINCRBY', USE, field, more) == more then redis.call('HDEL', USE, field) end
  put('scale', 0.8 * tonumber(state.scale or 1) + 0.2 * used / math.max(1, tonumber(EXPECTED)))
end

local function raise(name, by)
  put(name, get(name) + by)
  return get(name)
end
local function pause(most, n) return math.min(most, 250 * 2 ^ math.min(n, 16)) end
local returned, wait = false, 0
if outcome == 'OK' or outcome == 'ANSWERING' then
  returned = answered()
  clear('limits')
elseif outcome == 'FAILED' then
  if probe or raise('fails', 1) >= tonumber(BREAKER_FAILURES) or get('open') == 1 then
    local n = raise('opens', probe and 1 or 0)
    open_until(math.floor(NOW + pause(tonumber(PROBE_MS), n)), WHY)
    wait = next_look(500)
  end
elseif outcome == 'AWAY' then
  open_until(math.floor(NOW + tonumber(RETRY_AFTER)), WHY)
  wait = next_look(500)
elseif outcome == 'LIMITED' then
  returned = answered()
  local asked = tonumber(RETRY_AFTER)
  if asked < 0 then asked = pause(60000, raise('limits', 1) + 1) end
  put('until', math.max(get('until'), math.floor(NOW + asked)))
  put('why', WHY)
  wait = next_look(50)
end
if probe and outcome ~= 'ANSWERING' then clear('probe') end
local names = woken(returned)
table.insert(names, 1, silence())
table.insert(names, 1, wait)
table.insert(names, 1, get('open'))
return names
