-- KEYS: the route. ARGV: the epoch expected, the new route, the channel. Compare-and-set by epoch,
-- then the announcement.
-- The announcement carries the document, so that a gateway that is to hold writes need not read it
-- first.
-- Answers -1, or the epoch found where it is another.
local now = redis.call('GET', KEYS[1])
local epoch = 0
if now then epoch = cjson.decode(now)['epoch'] end
if epoch ~= tonumber(ARGV[1]) then return epoch end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[2])
return -1
