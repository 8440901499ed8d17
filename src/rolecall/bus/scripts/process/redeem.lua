-- Let a user in for a code, once.
-- Returns the rank now held | KNOWN (it was held before; the code is not used up) | WRONG | TOO_MANY
-- keys: members code tries all_tries
-- args: user rank shared has_admin most all_most window name
local ORDER = { [''] = 0, stranger = 0, guest = 1, user = 2, admin = 3 }
local held = string.match(redis.call('HGET', MEMBERS, USER) or '', '^%a+') or ''

local function has_admin()
  if HAS_ADMIN == '1' then return true end
  for _, member in ipairs(redis.call('HVALS', MEMBERS)) do
    if string.match(member, '^admin|') then return true end
  end
  return false
end

local function wrong()
  for _, key in ipairs({ TRIES, ALL_TRIES }) do
    if redis.call('INCR', key) == 1 then redis.call('PEXPIRE', key, WINDOW) end
  end
  return 'WRONG'
end

for key, limit in pairs({ [TRIES] = MOST, [ALL_TRIES] = ALL_MOST }) do
  if tonumber(redis.call('GET', key) or 0) >= tonumber(limit) then return 'TOO_MANY' end
end
local code = redis.call('GET', CODE) or SHARED
if code == 'used ' .. USER then return 'KNOWN' end
if code == 'start' then code = has_admin() and '' or 'admin' end
if held == 'stranger' or not ORDER[code] or ORDER[code] == 0 then return wrong() end
if math.max(ORDER[held], ORDER[RANK]) >= ORDER[code] then return 'KNOWN' end
local clock = redis.call('TIME')
redis.call('HSET', MEMBERS, USER, code .. '|' .. clock[1] .. '|' .. NAME)
redis.call('SET', CODE, 'used ' .. USER, 'XX', 'KEEPTTL')
return code
