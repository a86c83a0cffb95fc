-- Runs a script of an application on scratch copies, and lets it see the names of its keys.
-- KEYS: the copies.
-- ARGV: name of the function to call (empty: the text is a script); for each copy its key; then the
-- arguments of the script.
-- The script calls commands through `seen`: a word that is a key's name becomes the copy's name,
-- and a reply that is a copy's name becomes the key's.
local keys, arguments, copy_of, key_of = {}, {}, {}, {}
for at = 1, #KEYS do
  keys[at] = ARGV[at + 1]
  copy_of[keys[at]], key_of[KEYS[at]] = KEYS[at], keys[at]
end
for at = #KEYS + 2, #ARGV do arguments[#arguments + 1] = ARGV[at] end
local wanted, registered, server_calls = string.lower(ARGV[1]), nil, redis

local function copied(command, ...)
  local words, count = {...}, select('#', ...)
  for at = 1, count do words[at] = copy_of[words[at]] or words[at] end
  return command, unpack(words, 1, count)
end

local function back(reply)
  if type(reply) == 'table' then
    for at, each in pairs(reply) do reply[at] = back(each) end
    return reply
  end
  return key_of[reply] or reply
end

local seen = setmetatable({
  call = function(...) return back(server_calls.call(copied(...))) end,
  pcall = function(...) return back(server_calls.pcall(copied(...))) end,
  register_function = function(name, callback)
    if type(name) == 'table' then name, callback = name.function_name, name.callback end
    if string.lower(name) == wanted then registered = callback end
  end,
}, {__index = server_calls})

local function text(redis, server, KEYS, ARGV)
@TEXT@
end

local reply = text(seen, seen, keys, arguments)
if registered then return registered(keys, arguments) end
return reply
