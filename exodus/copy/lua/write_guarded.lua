-- Writes keys of any slots of one node of a cluster, under the guard.
-- KEYS: the guard, a hash in a slot of this node (none: no guard).
-- ARGV: database; `replies` where every reply is wanted, `payloads` for the short form, else empty;
-- number of fields of the guard; for each its name and value; then for each command how many words
-- it has, and these. In the short form: for each key its name, its expiry (0: none) and its DUMP
-- payload. Each is run under pcall, so that one refused key does not hide what became of the
-- others.
-- Answer: the number of the first field of the guard that has another value (0: none has), and its
-- value; the number of commands run; for each refused one its number and the error; all replies,
-- where they are wanted.
local db, wanted, fields = ARGV[1], ARGV[2] == 'replies', tonumber(ARGV[3])
local at, number, refused, replies = 4 + 2 * fields, 0, {}, {}
-- The guard is in database 0.
if db ~= '0' and KEYS[1] then redis.call('SELECT', '0') end
for field = 1, fields do
  local found = redis.call('HGET', KEYS[1], ARGV[2 + 2 * field])
  if found ~= ARGV[3 + 2 * field] then return {field, found, 0, {}, {}} end
end
if db ~= '0' then redis.call('SELECT', db) end
if ARGV[2] == 'payloads' then
  -- The server pays for each word of a command, so that most keys go without ABSTTL.
  local pcall, words = redis.pcall, ARGV
  for key = at, #words, 3 do
    local expiry, said = words[key + 1], nil
    if expiry == '0' then
      said = pcall('RESTORE', words[key], '0', words[key + 2], 'REPLACE')
    else
      said = pcall('RESTORE', words[key], expiry, words[key + 2], 'REPLACE', 'ABSTTL')
    end
    local err = said.err
    if err then refused[#refused + 1], refused[#refused + 2] = (key - at) / 3 + 1, err end
  end
  return {0, false, (#words - at + 1) / 3, refused, replies}
end
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  local said = redis.pcall(unpack(ARGV, at + 1, at + words))
  at, number = at + words + 1, number + 1
  if type(said) == 'table' and said.err then
    refused[#refused + 1], refused[#refused + 2] = number, said.err
  end
  if wanted then replies[number] = said end
end
return {0, false, number, refused, replies}
