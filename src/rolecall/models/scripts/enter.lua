-- Enter a call of a model, if breaker, quota and concurrency allow.
--   ticket: of the turn, for its booking; tokens: expected
--   rpm, tpm: requests and tokens per minute, 0 for no limit; minute: ms of a minute (shorter in tests)
--   lease: ms a call is in flight without being extended; book: '1' books a place in a later slice
-- Returns {GO, slice or -1 without a quota, tokens reserved, 1 for a probe} | {AWAY|FULL|LATER, ms to the next try, why, ms for which it is away}.
-- After AWAY and FULL, `wait` gets the conversation woken; LATER only ends with time.
-- include: clock model
-- args: ticket tokens rpm tpm minute lease book
local open, why = get('open') == 1, state.why or ''
-- A repeat after a lost reply is not in its own way.
if open and state.probe ~= CALL and (NOW < get('until') or probing()) then
  return { 'AWAY', next_look(500), why, silence() }
end
if not open and NOW < get('until') then return { 'LATER', next_look(50), why, 0 } end
if ROOM > 0 and in_flight() >= ROOM and not redis.call('ZSCORE', BUSY, CALL) then return { 'FULL', 5000, '', 0 } end

local rpm, tpm = tonumber(RPM), tonumber(TPM)
local SLICE = tonumber(MINUTE) / 60
local present = math.floor(NOW / SLICE)
local expected = math.max(1, math.floor(tonumber(TOKENS) * tonumber(state.scale or 1)))
if tpm > 0 then expected = math.min(expected, tpm) end

local tokens, requests, new = {}, {}, false -- by slice, and whether nothing was used lately
-- The first slice whose minute has room, never one before a slice that is booked.
local function free_slice()
  local last, flat = present, redis.call('HGETALL', USE)
  new = #flat == 0
  for i = 1, #flat, 2 do
    local slice, what = string.match(flat[i], '^(%d+):(.)$')
    slice = tonumber(slice)
    if slice < present - 60 then redis.call('HDEL', USE, flat[i])
    else
      local counts = what == 't' and tokens or requests
      counts[slice], last = tonumber(flat[i + 1]), math.max(last, slice)
    end
  end
  for slice = last, present + 600 do
    local t, r = 0, 0
    for s = slice - 60, slice do t, r = t + (tokens[s] or 0), r + (requests[s] or 0) end
    if (tpm == 0 or t == 0 or t + expected <= tpm) and (rpm == 0 or r < rpm) then return slice end
  end
end

local function use(slice)
  local field = string.format('%.0f', slice)
  redis.call('HSET', USE, field .. ':t', (tokens[slice] or 0) + expected, field .. ':r', (requests[slice] or 0) + 1)
  if new or a_second_later then redis.call('PEXPIRE', USE, math.floor(SLICE * 1200)) end
end

local slice = -1
if rpm > 0 or tpm > 0 then
  slice = present
  local booked = tonumber(get('booked') >= present - 60 and redis.call('HGET', BOOKED, TICKET) or -1)
  if booked > present then return { 'LATER', math.ceil(booked * SLICE - NOW) + 1, 'quota', 0 } end
  if booked >= 0 then redis.call('HDEL', BOOKED, TICKET) end
  if booked >= present - 60 then slice = booked
  else
    slice = free_slice() or -1
    if slice == -1 then return { 'LATER', math.floor(SLICE * 600), 'quota', 0 } end
    if slice == present or BOOK == '1' then use(slice) end
    if slice > present and BOOK == '1' then
      redis.call('HSET', BOOKED, TICKET, string.format('%.0f', slice))
      redis.call('EXPIRE', BOOKED, 3600)
      put('booked', math.max(slice, get('booked')))
    end
    if slice > present then return { 'LATER', math.ceil(slice * SLICE - NOW) + 1, 'quota', 0 } end
  end
end
redis.call('ZADD', BUSY, NOW + tonumber(LEASE), CALL)
if a_second_later then redis.call('PEXPIRE', BUSY, 86400000) end
if open then put('probe', CALL) end
return { 'GO', slice, expected, open and 1 or 0 }
