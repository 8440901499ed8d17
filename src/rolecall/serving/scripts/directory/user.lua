-- Say that a process may need model servers, or that it does not any more. They leave when nobody needs them.
-- Returns how many of its machine may need them. A process is named `<machine>/<process>`.
-- include: directory
-- args: user lasts
live()
if LASTS == '0' then redis.call('ZREM', USERS, USER)
else
  redis.call('ZADD', USERS, NOW + tonumber(LASTS), USER)
  outlive(USERS, tonumber(LASTS))
end
return users_of(string.match(USER, '^[^/]*'))
