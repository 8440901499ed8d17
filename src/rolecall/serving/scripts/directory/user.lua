-- Register a process that may need model servers; they leave when no process needs them.
--   user: `<machine>/<process>`; lasts: ms, 0 removes it
-- Returns how many processes of its machine may need model servers.
-- include: clock directory
-- args: user lasts
live()
if LASTS == '0' then redis.call('ZREM', USERS, USER)
else
  redis.call('ZADD', USERS, NOW + tonumber(LASTS), USER)
  outlive(USERS, tonumber(LASTS))
end
return users_of(string.match(USER, '^[^/]*'))
