-- KEYS: heartbeats, owners, acknowledged batches. ARGV: process, instance, journal token, batch,
-- heartbeat, channel or ''.
-- A heartbeat speaks for one instance, and for the batches that the store acknowledged to it. Where
-- the registration belongs to another instance, or the store lost the last batch, the heartbeat
-- would be false: it is not written.
-- Answers ok; owner and the other instance; or tail and the batch found.
local owner = redis.call('HGET', KEYS[2], ARGV[1])
if owner and owner ~= ARGV[2] then return {'owner', owner} end
if tonumber(ARGV[4]) > 0 then
  local found = redis.call('HGET', KEYS[3], ARGV[1])
  local token, number = string.match(found or '', '^(%w+):(%d+)$')
  if token ~= ARGV[3] or tonumber(number) < tonumber(ARGV[4]) then return {'tail', found or ''} end
end
if not owner then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[5])
if ARGV[6] ~= '' then redis.call('PUBLISH', ARGV[6], ARGV[1]) end
return {'ok', ''}
