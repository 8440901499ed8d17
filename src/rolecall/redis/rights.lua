-- What the server's user is not allowed.
-- Changes nothing. Returns the missing rules of its ACL; none where the server cannot tell. COMMANDS are calls in words: a
-- command as an ACL names it, and arguments, of which $ is a key and # a channel. A call has to be complete, for a server
-- may crash otherwise.
-- keys: meta
-- args: written* read* channels* commands*
local missing = {}

local function allowed(...)
  local told, answer = pcall(redis.acl_check_cmd, ...)
  return not told or answer
end

-- The first command that is allowed for one of the names, and that name.
local function example(commands, names)
  for _, name in ipairs(names) do
    for _, command in ipairs(commands) do
      if allowed(command, name, '1', '1') then return command, name end
    end
  end
end

-- Judges names by a command that the user has, if it has one.
local function judge(rule, command, names)
  for _, name in ipairs(command and names or {}) do
    if not allowed(command, name, '1', '1') then missing[#missing + 1] = rule .. name end
  end
end

local writes, key = example({ 'SET', 'HSET' }, { META, unpack(WRITTEN) })
local _, channel = example({ 'PUBLISH' }, CHANNELS)
-- Which needs no channel: who has it but no channel lacks the channels, not the commands.
local hears = allowed('UNSUBSCRIBE', META)
judge('~', writes, WRITTEN)
judge('%R~', (example({ 'GET', 'HGET' }, { META })), READ)
judge('&', hears and 'PUBLISH', CHANNELS)
local stands = { ['$'] = key or META, ['#'] = channel or META }
for _, call in ipairs(COMMANDS) do
  local command, arguments = call:match('^(%S+)(.*)$')
  local words = {}
  for word in command:gmatch('[^|]+') do words[#words + 1] = word end
  for word in arguments:gmatch('%S+') do words[#words + 1] = stands[word] or word end
  local silent = hears and not channel and arguments:find('#', 1, true)
  if not silent and not allowed(unpack(words)) then missing[#missing + 1] = '+' .. command end
end
return missing
