-- Let a user in for a code, once.
-- KEYS 1 members · 2 the code, by its hash · 3 wrong tries of the user · 4 wrong tries of all
-- ARGV 1 user · 2 rank by the settings · 3 rank that the settings give for this code, or '' · 4 '1' when they name an
--      admin · 5 most wrong tries of the user · 6 of all · 7 ms until tries begin anew · 8 user's name
-- Returns the rank now held | KNOWN (it was held before; the code is not used up) | WRONG | TOO_MANY
local MEMBERS, CODE, USER = KEYS[1], KEYS[2], ARGV[1]
local ORDER = { [''] = 0, stranger = 0, guest = 1, user = 2, admin = 3 }
local held = string.match(redis.call('HGET', MEMBERS, USER) or '', '^%a+') or ''

local function has_admin()
  if ARGV[4] == '1' then return true end
  for _, member in ipairs(redis.call('HVALS', MEMBERS)) do
    if string.match(member, '^admin|') then return true end
  end
  return false
end

local function wrong()
  for _, key in ipairs({ KEYS[3], KEYS[4] }) do
    if redis.call('INCR', key) == 1 then redis.call('PEXPIRE', key, ARGV[7]) end
  end
  return 'WRONG'
end

for i, key in ipairs({ KEYS[3], KEYS[4] }) do
  if tonumber(redis.call('GET', key) or 0) >= tonumber(ARGV[4 + i]) then return 'TOO_MANY' end
end
local code = redis.call('GET', CODE) or ARGV[3]
if code == 'used ' .. USER then return 'KNOWN' end
if code == 'start' then code = has_admin() and '' or 'admin' end
if held == 'stranger' or not ORDER[code] or ORDER[code] == 0 then return wrong() end
if math.max(ORDER[held], ORDER[ARGV[2]]) >= ORDER[code] then return 'KNOWN' end
local clock = redis.call('TIME')
redis.call('HSET', MEMBERS, USER, code .. '|' .. clock[1] .. '|' .. ARGV[8])
redis.call('SET', CODE, 'used ' .. USER, 'XX', 'KEEPTTL')
return code
