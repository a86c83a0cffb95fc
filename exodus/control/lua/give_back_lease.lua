-- KEYS: the lease. ARGV: its owner. Ends the lease, if it is still the owner's. Answers 1 where it
-- was.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
