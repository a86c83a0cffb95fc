-- KEYS: listeners. ARGV: side, the version expected, JSON of the new map.
-- Compare-and-set by version.
-- Answers 1, or 0 where another version is there.
local raw = redis.call('HGET', KEYS[1], ARGV[1])
local version = raw and cjson.decode(raw).version or 0
if version ~= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
