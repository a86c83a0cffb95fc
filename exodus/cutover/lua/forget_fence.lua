-- KEYS: the fence's record. ARGV: a switch. Deletes the record, if it is this switch's. Answers 1
-- where it was.
local record = redis.call('GET', KEYS[1])
if record and cjson.decode(record)['switch'] == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
