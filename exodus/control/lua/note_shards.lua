-- KEYS: topology, failovers. ARGV: side, the cluster's epoch, the shards, JSON of the topology, how
-- many failovers are kept, then JSON of each failover. Notes other shards of a side in a new epoch,
-- unless newer ones are known. Answers the epoch; 0 where nothing is new.
local raw = redis.call('HGET', KEYS[1], ARGV[1])
local epoch, known = 1, raw and cjson.decode(raw)
if known then
  if known.config_epoch > tonumber(ARGV[2]) then return 0 end
  if known.master == ARGV[3] then
    known.config_epoch, known.replicas = tonumber(ARGV[2]), cjson.decode(ARGV[4]).replicas
    redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(known))
    return 0
  end
  epoch = known.epoch + 1
  for at = 6, #ARGV do
    local failover = cjson.decode(ARGV[at])
    failover.epoch = epoch
    redis.call('RPUSH', KEYS[2], cjson.encode(failover))
  end
  redis.call('LTRIM', KEYS[2], -tonumber(ARGV[5]), -1)
end
local topology = cjson.decode(ARGV[4])
topology.epoch = epoch
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(topology))
return epoch
