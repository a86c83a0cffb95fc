-- KEYS: topology, failovers. ARGV: side, config epoch, master, JSON of the topology, JSON of the
-- failover, how many failovers are kept. Notes another master of a side in a new epoch, unless a
-- newer one is known. Answers the epoch; 0 where nothing is new.
local raw = redis.call('HGET', KEYS[1], ARGV[1])
local epoch = 1
if raw then
  local known = cjson.decode(raw)
  if known.master == ARGV[3] and known.config_epoch == tonumber(ARGV[2]) then
    known.replicas = cjson.decode(ARGV[4]).replicas
    redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(known))
    -- Who noted the failover may not have used the old master until then, as this process has.
    local told = cjson.decode(ARGV[5])
    for at = -1, told.witnessed and -2 or 0, -1 do
      local last = redis.call('LINDEX', KEYS[2], at)
      local failover = last and cjson.decode(last)
      if failover and failover.side == ARGV[1] and failover.epoch == known.epoch then
        if failover.safe_until_ms == cjson.null then
          failover.safe_until_ms, failover.lost_bytes_min = told.safe_until_ms, told.lost_bytes_min
        end
        failover.at_ms = failover.witnessed and math.max(failover.at_ms, told.at_ms) or told.at_ms
        failover.witnessed = true
        redis.call('LSET', KEYS[2], at, cjson.encode(failover))
      end
    end
    return 0
  end
  if known.config_epoch > tonumber(ARGV[2]) then return 0 end
  epoch = known.epoch + 1
  local failover = cjson.decode(ARGV[5])
  failover.epoch, failover.before = epoch, known.master
  redis.call('RPUSH', KEYS[2], cjson.encode(failover))
  redis.call('LTRIM', KEYS[2], -tonumber(ARGV[6]), -1)
end
local topology = cjson.decode(ARGV[4])
topology.epoch = epoch
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(topology))
return epoch
