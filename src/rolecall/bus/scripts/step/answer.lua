-- Answer a question that a handler has asked. The turn continues if it waits for nothing else.
--   asker: the turn whose handler asked, TURN or a call of it; key, hop: of the step; result: of the step, as JSON
--   told: the answer as JSON for followers; said: the answer as the log shows it; instance: of the front end
-- Returns OK | LATE (it was answered before, or its time is over) | GONE (there is no such question any more).
-- include: clock state entry trace turn sleep
-- keys: active deferred steps
-- args: asker key hop steps_stem steps_limit result told said instance
local alive = is_call(ASKER) and redis.call('HEXISTS', JOURNAL, ASKER .. ':a') == 1 or running == ASKER
if not alive or redis.call('HGET', STEPS, 'h') ~= HOP or redis.call('HEXISTS', STEPS, KEY) == 0 then return 'GONE' end
if redis.call('HEXISTS', STEPS, '=' .. KEY) == 1 then return 'LATE' end
record(ASKER, 0, INSTANCE, 'ANSWERED', SAID)
event(TURN, 'answered', 'x', TOLD)
settle_step(ASKER, KEY, RESULT, STEPS_LIMIT)
flush()
return 'OK'
