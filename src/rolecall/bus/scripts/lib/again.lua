-- Prelude of the scripts that write the entry ENTRY of STREAM again; follows state. The script declares CONVERSATION,
-- JOURNAL and TURN.

-- Tell the next holder that steps of the handler are recorded: it is the first delivery of the new entry.
local function mark_stepped(fields)
  if redis.call('HEXISTS', JOURNAL, TURN .. ':s') == 1 then
    fields[#fields + 1], fields[#fields + 2] = 's', 1
  end
end

-- Note that the turn's entry is `id` of `stream` now, if this was the turn's entry.
local function written_again(stream, id)
  if is_call(TURN) then
    if redis.call('HGET', JOURNAL, TURN .. ':a') == place(STREAM, ENTRY) then
      redis.call('HSET', JOURNAL, TURN .. ':a', place(stream, id))
    end
    return
  end
  local running, at = unpack(redis.call('HMGET', CONVERSATION, 'cur', 'at'))
  if running == TURN and at == place(STREAM, ENTRY) then
    redis.call('HSET', CONVERSATION, 'at', place(stream, id))
  end
end

