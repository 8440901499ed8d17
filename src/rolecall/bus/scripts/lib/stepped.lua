-- Prelude of the scripts that write an entry again, which counts as its first delivery: `s` tells its next holder that
-- steps of its handler are recorded. JOURNAL and TURN are declared by the script.
local function mark_stepped(fields)
  if redis.call('HEXISTS', JOURNAL, TURN .. ':s') == 1 then
    fields[#fields + 1], fields[#fields + 2] = 's', 1
  end
end

