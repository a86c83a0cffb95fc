-- KEYS: heartbeats, owners. ARGV: process, instance, ms after which a heartbeat is stale.
-- Claims the registration of a process id. Answers the heartbeat of a live owner; 1 where a dead
-- one left it; else 0.
local owner, beat = redis.call('HGET', KEYS[2], ARGV[1]), redis.call('HGET', KEYS[1], ARGV[1])
local other = owner and owner ~= ARGV[2]
if other and beat then
  local time = redis.call('TIME')
  local age = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000 - cjson.decode(beat).at_ms
  if age <= tonumber(ARGV[3]) then return beat end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return other and beat and 1 or 0
