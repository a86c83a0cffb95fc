-- KEYS: the lease. ARGV: its owner, ms. Takes a free lease, or prolongs the owner's own. Answers 1
-- where it holds it.
if redis.call('GET', KEYS[1]) == ARGV[1]
  or redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
return 0
