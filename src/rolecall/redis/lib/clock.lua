-- Prelude: NOW is the server's clock in ms since the epoch. Scripts never use the clock of a caller.
local NOW = redis.call('TIME')
NOW = NOW[1] * 1000 + math.floor(NOW[2] / 1000)

