-- Make a user a member for a one-time code.
--   code: key of the code; tries, all_tries: counters of wrong codes, of the user and of all users
--   rank: what the settings give the user; shared: the rank if the code is the shared one of the settings, or ''
--   has_admin: '1' if the settings name an admin; most, all_most: wrong codes allowed within `window` ms
-- Returns the new rank | KNOWN (the code gives nothing new and stays valid) | WRONG | TOO_MANY.
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
local seconds = unpack(redis.call('TIME'))
redis.call('HSET', MEMBERS, USER, code .. '|' .. seconds .. '|' .. NAME)
redis.call('SET', CODE, 'used ' .. USER, 'XX', 'KEEPTTL')
return code
