-- Prelude: what scripts tell about turns, events for followers and records for the log; follows clock.
-- keys: log

-- Append an event to the stream `events` and tell the followers, whom an event of this many bytes only wakes. Of the
-- further fields, a text `x` comes last. Returns the event's id.
local HEARD = 8192
local function tell(events, channel, turn, kind, ...)
  local id = redis.call('XADD', events, 'MAXLEN', '~', 4000, '*', 't', turn, 'k', kind, ...)
  local told = table.concat({ id, turn, kind, ... }, '\31')
  redis.call('PUBLISH', channel, #told < HEARD and told or kind)
  return id
end

-- The log records of this script that are not written yet. Those of one turn become one entry: its conversation,
-- session and turn, then the fields of each record in turn.
local unwritten = {}

-- Write the log records. Each script that records calls this last.
local function flush()
  if unwritten[1] then redis.call('XADD', LOG, 'MAXLEN', '~', 200000, '*', unpack(unwritten)) end
  unwritten = {}
end

-- Add a log record as of `ms`.
local function log_record(conversation, session, turn, received, ms, instance, word, text)
  if unwritten[2] ~= conversation or unwritten[6] ~= turn then
    flush()
    unwritten = { 'c', conversation, 's', session or NOW, 't', turn }
  end
  local n = #unwritten
  unwritten[n + 1], unwritten[n + 2] = 'ms', ms
  unwritten[n + 3], unwritten[n + 4] = 'd', math.max(0, ms - received)
  unwritten[n + 5], unwritten[n + 6] = 'i', instance
  unwritten[n + 7], unwritten[n + 8] = 'w', word
  unwritten[n + 9], unwritten[n + 10] = 'x', text
end

