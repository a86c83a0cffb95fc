-- ARGV: the channel. Asks for heartbeats of this time or later. Answers the store's time in ms.
-- The time is read in the same step: whoever hears the message looks at itself later than that.
local now = redis.call('TIME')
local ms = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('PUBLISH', ARGV[1], 'say ' .. ms)
return ms
