-- Read the clock of the server that holds a key.
-- Changes nothing. Returns ms since the epoch.
-- include: clock
-- keys: clock
return NOW
