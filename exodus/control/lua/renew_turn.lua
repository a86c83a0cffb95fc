-- KEYS: the turn. ARGV: its holder, ms. Prolongs the turn, or takes it again after it ended.
-- Answers 1 where it is held.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
