-- KEYS: the lease. ARGV: its owner, ms. Prolongs the lease, if it is still the owner's. Answers 1
-- where it is.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
