-- Put a reply that belongs to no turn into the outbox of a front end, once.
--   repeat_ms: how long a repeat is recognized; name: the conversation's id; payload: the entry as JSON
-- Returns 1, or 0 for a repeat, which writes nothing.
-- keys: idempotency outbox
-- args: repeat_ms name payload
if not redis.call('SET', IDEMPOTENCY, '|', 'NX', 'PX', REPEAT_MS) then return 0 end
redis.call('XADD', OUTBOX, '*', 'c', NAME, 't', '', 'e', PAYLOAD)
return 1
