-- KEYS: the fence's record. ARGV: the record as it was read, the record to be. Replaces it, if nobody else has. Answers 1
-- where it was replaced.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  return 1
end
return 0
