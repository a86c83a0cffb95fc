-- KEYS: the turn. ARGV: its holder, ms. Takes a free turn. Answers the other holder and the ms
-- left, or '' and 0.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return {'', 0} end
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
