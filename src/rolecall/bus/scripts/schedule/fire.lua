-- Begin the turn of a schedule that is due, and set when it is due next, in one step. Any number of processes may run
-- this. While its last turn goes on, or its turn is refused, it stays due and is tried again.
--   schedule: its id; due: the due time that the caller read; following: the one after it in ms, or '' at the end
--   retry_ms: until it is tried again; late: a notice before the turn as JSON, or ''; late_text: the same for followers
--   of a front end without an outbox, '' if `notices`, its outbox, delivers
-- Returns {BEGUN, turn} | {LATER} | {EARLY} | {MOVED} (it is due at another time) | {GONE}.
-- include: clock state entry trace turn sleep finish admit
-- keys: planned schedules notices
-- args: schedule due following retry_ms late late_text
local member = NAME .. '\31' .. SCHEDULE
local planned = redis.call('ZSCORE', PLANNED, member)
if not planned then
  redis.call('ZREM', DEFERRED, member)
  return { 'GONE' }
end
if tonumber(planned) ~= tonumber(DUE) then return { 'MOVED' } end
if tonumber(redis.call('ZSCORE', DEFERRED, member) or NOW) > NOW then return { 'EARLY' } end
local last = redis.call('HGET', SCHEDULES, SCHEDULE .. ':t') or ''
if (last ~= '' and redis.call('HEXISTS', JOURNAL, last .. ':e') == 1) or refused(0) then
  redis.call('ZADD', DEFERRED, NOW + tonumber(RETRY_MS), member)
  return { 'LATER' }
end
if LATE_TEXT ~= '' then event('', 'notice', 'x', LATE_TEXT)
elseif LATE ~= '' then redis.call('XADD', NOTICES, '*', 'c', NAME, 't', '', 'e', LATE) end
local turn = accept()[2]
redis.call('HSET', JOURNAL, turn .. ':t', SCHEDULE)
if FOLLOWING == '' then
  redis.call('HDEL', SCHEDULES, SCHEDULE, SCHEDULE .. ':t')
  redis.call('ZREM', PLANNED, member)
  redis.call('ZREM', DEFERRED, member)
else
  redis.call('HSET', SCHEDULES, SCHEDULE .. ':t', turn)
  redis.call('ZADD', PLANNED, FOLLOWING, member)
  redis.call('ZADD', DEFERRED, FOLLOWING, member)
end
return { 'BEGUN', turn }
