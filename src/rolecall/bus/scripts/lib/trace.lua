-- Prelude: what scripts tell about turns, events for followers and records for the log; follows clock.
-- keys: log

-- Append an event to the stream `events` and tell the followers, whom an event of this many bytes only wakes. Of the
-- further fields, a text `x` comes last. Returns the event's id.
local HEARD = 8192
local function tell(events, channel, turn, kind, ...)
  local id = redis.call('XADD', events, 'MAXLEN', '~', 4000, '*', 't', turn, 'k', kind, ...)
  local heard = table.concat({ id, turn, kind, ... }, '\31')
  redis.call('PUBLISH', channel, #heard < HEARD and heard or kind)
  return id
end

-- The log records of this script that are not written yet, as the fields of one entry: `c` conversation, `s` session and
-- `t` turn, then `r` for each of that turn's records (ms, ms since the turn was received, instance, word and text); then
-- those of the next turn. The table begins with room for them: each time a table grows costs as much as a command.
local unwritten, length, of_turn = {
  nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil,
}, 0, ''

-- Write the log records. Each script that records calls this last.
local function flush()
  if length > 0 then redis.call('XADD', LOG, 'MAXLEN', '~', 200000, '*', unpack(unwritten, 1, length)) end
  length, of_turn = 0, ''
end

-- Add a log record as of `ms`.
local function log_record(conversation, session, turn, received, ms, instance, word, text)
  local whose = conversation .. '\31' .. turn
  if of_turn ~= whose then
    if length > 2000 then flush() end
    unwritten[length + 1], unwritten[length + 2], unwritten[length + 3] = 'c', conversation, 's'
    unwritten[length + 4], unwritten[length + 5], unwritten[length + 6] = session or NOW, 't', turn
    length, of_turn = length + 6, whose
  end
  unwritten[length + 1] = 'r'
  unwritten[length + 2] =
    ms .. '\31' .. math.max(0, ms - received) .. '\31' .. instance .. '\31' .. word .. '\31' .. text
  length = length + 2
end
