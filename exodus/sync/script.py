"""One call that scans, and reads many keys whole: type, absolute expiry and payload or value of each are of the same instant.

Where scripts are allowed this saves a round trip and most of our own CPU a batch (facts-redis 9). It only reads, so it is never replicated.
What it may cost a server is bounded by the caller: it stops collecting after so many bytes, and keys that are large are named, not read.

On servers without PEXPIRETIME the server's clock stands on both sides of each PTTL; where the two are further apart than a millisecond the script was
interrupted in between, and reads once more (errors of up to 32 ms were seen otherwise, facts-redis 3).
"""

from __future__ import annotations

import hashlib

# Arguments: payload or value, PEXPIRETIME known (1 or 0), MEMORY USAGE allowed (1 or 0), bytes to collect, key bytes and elements from which a key is
# large (the latter count where memory cannot be asked for), then either `scan`, cursor, count, or `keys`, names, or `like`, names and types in turn:
# values that are expected to be of these types and of a bearable size, since the other side's are.
# Answer: cursor, then for each key its name, type (empty with a payload: nobody needs it), expiry (-1 none, -2 no such key) and value,
# which is nil for "ask again" and 0 for "large".
READ = b"""
local payload, modern, weigh = ARGV[1] == 'payload', ARGV[2] == '1', ARGV[3] == '1'
local most, key_bytes, elements = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local length = {string='STRLEN', hash='HLEN', list='LLEN', set='SCARD', zset='ZCARD', stream='XLEN'}
local reads = {
  string = {'GET'}, list = {'LRANGE', 0, -1}, set = {'SMEMBERS'}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, hash = {'HGETALL'},
}
local keys, cursor, first = ARGV, '', 8
if ARGV[7] == 'scan' then
  local found = redis.call('SCAN', ARGV[8], 'COUNT', ARGV[9])
  cursor, keys, first = found[1], found[2], 1
end

local function expiry(key)
  if modern then return redis.call('PEXPIRETIME', key) end
  local left = redis.call('PTTL', key)
  while left >= 0 do
    local before = redis.call('TIME')
    left = redis.call('PTTL', key)
    local after = redis.call('TIME')
    local from = before[1] * 1000 + math.floor(before[2] / 1000)
    local till = after[1] * 1000 + math.floor(after[2] / 1000)
    if left >= 0 and till - from <= 1 then return from + left end
  end
  return left
end

local function size_of(key, kind)
  if kind == 'string' then return redis.call('STRLEN', key) end
  if weigh then return redis.call('MEMORY', 'USAGE', key) or 0 end
  kind = kind or redis.call('TYPE', key).ok
  local command = length[kind]
  if not command then return 0 end
  local size = redis.call(command, key)
  if kind == 'string' then return size end
  return size > elements and key_bytes + 1 or size * 16
end

local out, at, collected = {cursor}, 1, 0
if ARGV[7] == 'like' then
  for i = 8, #ARGV, 2 do
    local key, kind = ARGV[i], ARGV[i + 1]
    local how = reads[kind]
    local value, at_ms = how and redis.pcall(how[1], key, unpack(how, 2)), expiry(key)
    if not value or at_ms == -2 or (type(value) == 'table' and (value.err or #value == 0)) then
      kind = redis.call('TYPE', key).ok
      if kind == 'none' then value, at_ms = '', -2 else value = false end
    end
    out[at + 1], out[at + 2], out[at + 3], out[at + 4] = key, kind, string.format('%.0f', at_ms), value
    at = at + 4
  end
  return out
end
for i = first, #keys do
  local key = keys[i]
  local kind, at_ms, value = '', -1, false
  if not payload then kind = redis.call('TYPE', key).ok end
  local size = size_of(key, not payload and kind or nil)
  if size > key_bytes then
    value = 0
  elseif collected <= most then
    at_ms = expiry(key)
    if payload then
      value = redis.call('DUMP', key)
      if value then size = #value end
    elseif reads[kind] then
      local how = reads[kind]
      value = redis.call(how[1], key, unpack(how, 2))
    end
    collected = collected + size
    if at_ms == -2 or (payload and not value) then kind, at_ms, value = 'none', -2, '' end
  end
  out[at + 1], out[at + 2], out[at + 3], out[at + 4] = key, kind, string.format('%.0f', at_ms), value
  at = at + 4
end
return out
"""
READ_SHA = hashlib.sha1(READ, usedforsecurity=False).hexdigest()
