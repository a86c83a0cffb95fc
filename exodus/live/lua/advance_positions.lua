-- KEYS: positions. ARGV: partition, entry id, and so on. A position only moves forward: where a
-- replica is waited for, no guard on the follower stops a lane that slept past its lease.
local function parts(id)
  local ms, seq = id:match('(%d+)%-?(%d*)')
  return tonumber(ms), tonumber(seq) or 0
end
for at = 1, #ARGV, 2 do
  local ms, seq = parts(ARGV[at + 1])
  local was_ms, was_seq = parts(redis.call('HGET', KEYS[1], ARGV[at]) or '0-0')
  if ms > was_ms or (ms == was_ms and seq > was_seq) then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  end
end
