-- Take, renew and give up parts of a work that its members share equally.
--   members: member → ms until which it is one unless it renews; owners: part → member
--   lasts: ms, 0 to leave; count: of parts; give: parts of this member to give up; dead: members that have ended
-- Returns {the members, the number of parts that this member may have, the parts that it has}.
-- include: clock
-- keys: members owners
-- args: member lasts count give* dead*
if #DEAD > 0 then redis.call('ZREM', MEMBERS, unpack(DEAD)) end
redis.call('ZREMRANGEBYSCORE', MEMBERS, '-inf', NOW)
for _, part in ipairs(GIVE) do
  if redis.call('HGET', OWNERS, part) == MEMBER then redis.call('HDEL', OWNERS, part) end
end
if LASTS == '0' then
  redis.call('ZREM', MEMBERS, MEMBER)
  return { redis.call('ZRANGE', MEMBERS, 0, -1), 0, {} }
end
-- A server at its memory limit refuses what adds a member, but a part that is held can be renewed.
redis.call('ZADD', MEMBERS, NOW + LASTS, MEMBER)
local members, living, owner_of = redis.call('ZRANGE', MEMBERS, 0, -1), {}, {}
for _, name in ipairs(members) do living[name] = true end
local flat = redis.call('HGETALL', OWNERS)
for i = 1, #flat, 2 do owner_of[flat[i]] = living[flat[i + 1]] and flat[i + 1] end
local mine = {}
for part = 0, COUNT - 1 do
  if owner_of[tostring(part)] == MEMBER then mine[#mine + 1] = part end
end
-- Of a remainder, the first members by name have one part more.
table.sort(members)
local most = math.floor(COUNT / #members)
for i = 1, COUNT % #members do
  if members[i] == MEMBER then most = most + 1 end
end
for part = 0, COUNT - 1 do
  if #mine < most and not owner_of[tostring(part)] then
    redis.call('HSET', OWNERS, part, MEMBER)
    mine[#mine + 1] = part
  end
end
return { members, most, mine }
