-- KEYS: the fence's record. ARGV: the record as it was read (empty: there was none), the record to
-- be. Replaces it, if nobody else has. Answers 1 where it is the record to be.
local found = redis.call('GET', KEYS[1]) or ''
if found == ARGV[1] or found == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[2])
  return 1
end
return 0
