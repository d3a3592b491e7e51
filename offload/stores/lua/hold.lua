-- Hold blobs, and return which of them exist.
--
-- KEYS     three for each: the blob, its holds, its location (one slot in a Cluster)
-- ARGV[1]  minimum lifetime in milliseconds
-- ARGV[2]  holder
-- ARGV[3]  milliseconds for which only blobs that exist nowhere are held; empty: hold all blobs
--          for their lifetime
-- returns  for each: 1 if the blob is here (and held), else 0; or, if another tier has it (and
--          it is held), {its location, milliseconds that the tier promised}
--
-- A blob's holds are a sorted set, holder -> until (milliseconds, server's clock). Its location
-- is a string that expires with the promise of the tier that has the blob. Such a blob has no
-- key of its own that could expire: its lifetime is stored among the holds, as '@life'. (Other
-- names that start with @ are reservations by writers that are about to store it.)
--
-- Why a script: a blob could expire between the check and the hold; and a lifetime must not be
-- shortened, for which Redis before 7 has no command (PEXPIRE ... GT).
-- A key without an expiry (PTTL -1) stays without one.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl = tonumber(ARGV[1])
local over = string.format('%.0f', now)
local until_ = string.format('%.0f', now + ttl)
local reserved = tonumber(ARGV[3])
local found = {}
for i = 1, #KEYS, 3 do
  local blob, holds, place = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  redis.call('ZREMRANGEBYSCORE', holds, '-inf', over)
  local left = redis.call('PTTL', blob)
  local note = left == -2 and redis.call('GET', place)
  local lives = note and redis.call('ZSCORE', holds, '@life')
  if lives then
    redis.call('ZADD', holds, 'GT', until_, '@life')
  end
  if not reserved then
    redis.call('ZADD', holds, 'GT', until_, ARGV[2])
  elseif left == -2 and not lives then
    redis.call('ZADD', holds, 'GT', string.format('%.0f', now + reserved), ARGV[2])
  end
  local kept = redis.call('PTTL', holds)
  if kept < ttl and kept ~= -2 then
    redis.call('PEXPIRE', holds, ARGV[1])
  end
  if left ~= -2 then
    found[#found + 1] = 1
    if left >= 0 and left < ttl then
      redis.call('PEXPIRE', blob, ARGV[1])
    end
  elseif lives then
    found[#found + 1] = { note, redis.call('PTTL', place) }
  else
    found[#found + 1] = 0
  end
end
return found
