-- Arguments: payload, either (a string that takes over 4 KB comes as its value, in an array of its
-- own; with `strings` any string comes as its value, with the type `value`), value, comparable (the
-- value of a string, the payload of all else), size (bytes of memory), outline (a value's length
-- and one, so that none is 0) or name (nothing but whether it is there);
-- PEXPIRETIME known (1 or 0), MEMORY USAGE allowed (1 or 0), bytes to collect, key bytes and
-- elements from which a key is large (the latter count where memory cannot be asked for); then
-- either `scan`, cursor, count, and `strings` where all are expected to be (types are asked for
-- from the first one on that is not), or `keys`, names, or `like`, a letter (LETTERS) for each
-- type, names: values that are expected to be of these types and of a bearable size, since the
-- other side's are.
-- Numbers for commands are text already: to print one, `%.17g`, takes a server longer than
-- GETRANGE.
-- Answer, in columns, which cost both ends less than a row a key: cursor, names (only of `scan`),
-- types (none with payloads and sizes, unless with `strings`; a single one where all are the same),
-- expiries (-1 none, -2 no such key), and values, which are nil for "ask again" and 0 for "large".
local payload = ARGV[1] == 'payload' or ARGV[1] == 'either'
local sized, outlined = ARGV[1] == 'size', ARGV[1] == 'outline'
local dumped = payload or ARGV[1] == 'comparable'
local modern, weigh = ARGV[2] == '1', ARGV[3] == '1'
local most, key_bytes, elements = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local plain = ARGV[1] == 'either' and 4096 or key_bytes
local call = redis.call
local length = {string='STRLEN', hash='HLEN', list='LLEN', set='SCARD', zset='ZCARD', stream='XLEN'}
local reads = {
  string = {'GETRANGE', '0', ARGV[5]}, list = {'LRANGE', '0', '-1'}, set = {'SMEMBERS'},
  hash = {'HGETALL'},
  zset = {'ZRANGE', '0', '-1', 'WITHSCORES'},
}
local keys, names, cursor, first = ARGV, {}, '', 8
if ARGV[7] == 'scan' then
  local found = call('SCAN', ARGV[8], 'COUNT', ARGV[9])
  cursor, keys, names, first = found[1], found[2], found[2], 1
elseif ARGV[7] == 'like' then
  first = 9
end
local kinds, expiries, values = {}, {}, {}

local function told()
  for at = 2, #kinds do
    if kinds[at] ~= kinds[1] then return {cursor, names, kinds, expiries, values} end
  end
  return {cursor, names, {kinds[1]}, expiries, values}
end

if ARGV[1] == 'name' then
  for i = first, #keys do
    local at = i - first + 1
    kinds[at], expiries[at], values[at] = 'key', -1, 1
    if ARGV[7] ~= 'scan' and call('EXISTS', keys[i]) == 0 then
      kinds[at], expiries[at], values[at] = 'none', -2, ''
    end
  end
  return told()
end

local function now()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

if modern then
  local at = 0
  for i = first, #keys do
    at = at + 1
    expiries[at] = call('PEXPIRETIME', keys[i])
  end
else
  local i, at, run = first, 0, 64
  while i <= #keys do
    local n, from, timed = 0, now(), false
    while n < run and i + n <= #keys do
      local left = call('PTTL', keys[i + n])
      n = n + 1
      if left >= 0 then left, timed = from + left, true end
      expiries[at + n] = left
    end
    local ms = timed and now() - from or 0
    if ms > 0 then
      run = math.max(1, math.floor(n / 2))
    else
      i, at, run = i + n, at + n, 64
    end
  end
end

local function size_of(key, kind)
  if weigh then return call('MEMORY', 'USAGE', key) or 0 end
  kind = kind or call('TYPE', key).ok
  local command = length[kind]
  if not command then return 0 end
  local size = call(command, key)
  if kind == 'string' then return size end
  return size > elements and key_bytes + 1 or size * 16
end

if ARGV[7] == 'like' and not outlined then
  local letters = {s='string', l='list', e='set', z='zset', h='hash', x='stream'}
  for at = 1, #expiries do
    local key, kind = ARGV[8 + at], letters[ARGV[8]:sub(at, at)]
    local how = reads[kind]
    if dumped and kind and kind ~= 'string' then how = {'DUMP'} end
    local value = how and redis.pcall(how[1], key, unpack(how, 2))
    if not value or expiries[at] == -2
        or (type(value) == 'table' and (value.err or #value == 0)) then
      kind = call('TYPE', key).ok
      if kind == 'none' then value, expiries[at] = '', -2 else value = false end
    elseif kind == 'string' and #value > key_bytes then
      value = 0
    end
    kinds[at], values[at] = kind, value
  end
  return told()
end
local guessed = ARGV[7] == 'scan' and ARGV[10] == 'strings'
local collected, guessing = 0, guessed
for at = 1, #expiries do
  local key = keys[first + at - 1]
  local kind, value
  if guessing and collected <= most then
    value = redis.pcall('GETRANGE', key, '0', ARGV[5])
    if type(value) == 'table' then
      guessing, value = false, nil
    elseif value ~= '' or expiries[at] ~= -2 then
      kind = 'string'
    end
  end
  if not kind and not payload and not sized then kind = call('TYPE', key).ok end
  if kind ~= 'string' then value = false end
  if outlined then
    value = length[kind] and call(length[kind], key) + 1 or 1
    if kind == 'none' then expiries[at], value = -2, '' end
  elseif kind == 'string' then
    -- As much of it as may be read, and a byte: cheaper than its length first.
    if collected <= most then
      value = value or call('GETRANGE', key, '0', ARGV[5])
      collected = collected + #value
      if #value > key_bytes then value = 0 end
    else
      value = false
    end
    if expiries[at] == -2 then kind, value = 'none', '' end
  else
    local size = size_of(key, kind)
    if size > key_bytes then
      value = 0
    elseif sized then
      value = math.max(size, 1)
    elseif collected <= most then
      if payload and size > plain and call('TYPE', key).ok == 'string' then
        value = {call('GETRANGE', key, '0', ARGV[5])}
      elseif dumped then
        value = call('DUMP', key)
        if value then size = #value end
      elseif reads[kind] then
        local how = reads[kind]
        value = call(how[1], key, unpack(how, 2))
      end
      collected = collected + size
      if expiries[at] == -2 or (dumped and not value) then
        kind, expiries[at], value = 'none', -2, ''
      end
    end
  end
  if not payload and not sized then
    kinds[at] = kind
  elseif guessed then
    kinds[at] = kind == 'string' and 'value' or kind or ''
  end
  values[at] = value
end
return told()
