-- Set field ARGV[1] of a guard key to ARGV[3] if it is ARGV[2] still; empty: it is not there.
local found = redis.call('HGET', KEYS[1], ARGV[1])
if (found or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
