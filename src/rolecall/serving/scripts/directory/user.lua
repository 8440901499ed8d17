-- Say that a process may need model servers, or that it does not any more. They leave when nobody needs them.
-- KEYS lib/served  ARGV 1 process · 2 ms it may need them, 0 ends it
-- Returns how many of its machine may need them. A process is named `<machine>/<process>`.
-- include: directory
live()
if ARGV[2] == '0' then redis.call('ZREM', USERS, ARGV[1])
else
  redis.call('ZADD', USERS, NOW + tonumber(ARGV[2]), ARGV[1])
  outlive(USERS, tonumber(ARGV[2]))
end
return users_of(string.match(ARGV[1], '^[^/]*'))
