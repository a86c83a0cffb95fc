-- KEYS: topology, failovers. ARGV: side, the cluster's epoch, the shards, JSON of the topology, how
-- many failovers are kept, then JSON of each failover. Notes other shards of a side in a new epoch,
-- unless newer ones are known. Answers the epoch; 0 where nothing is new.
local raw = redis.call('HGET', KEYS[1], ARGV[1])
local epoch, known, noted = 1, raw and cjson.decode(raw), 0
local newer = known and known.config_epoch > tonumber(ARGV[2])
if known then epoch = known.epoch end
if not newer and not (known and known.master == ARGV[3]) then
  if known then epoch = epoch + 1 end
  local topology = cjson.decode(ARGV[4])
  topology.epoch, noted = epoch, epoch
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(topology))
elseif not newer then
  known.config_epoch, known.replicas = tonumber(ARGV[2]), cjson.decode(ARGV[4]).replicas
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(known))
end

-- Who noted the shards may have begun after the failover, and not know of it. So each process that
-- saw a failover tells it, and it is kept once. Between two failovers to one node there is one from
-- it.
local function noted_at(told)
  for at = -1, -tonumber(ARGV[5]), -1 do
    local last = redis.call('LINDEX', KEYS[2], at)
    if not last then return nil end
    local failover = cjson.decode(last)
    if failover.side == told.side then
      if failover.before == told.before and failover.master == told.master then
        return at, failover
      end
      if failover.before == told.master then return nil end
    end
  end
end
for number = 6, #ARGV do
  local told = cjson.decode(ARGV[number])
  local at, failover = noted_at(told)
  if at then
    if failover.safe_until_ms == cjson.null then
      failover.safe_until_ms, failover.lost_bytes_min = told.safe_until_ms, told.lost_bytes_min
    end
    failover.at_ms = math.max(failover.at_ms, told.at_ms)
    redis.call('LSET', KEYS[2], at, cjson.encode(failover))
  else
    told.epoch = epoch
    redis.call('RPUSH', KEYS[2], cjson.encode(told))
  end
end
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[5]), -1)
return noted
