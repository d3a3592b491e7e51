-- Keep blobs for a holder, and tell which of them are there.
--
-- KEYS     three for each: the blob, its holds, its place (in a Cluster: of one slot)
-- ARGV[1]  milliseconds that they shall live at least
-- ARGV[2]  holder
-- ARGV[3]  milliseconds for which only what is nowhere is held; empty: all, as they shall live
-- returns  for each: 1 if the blob is here (and kept), else 0; or, where it lies and lives
--          elsewhere (and is kept), {its note, milliseconds that it was promised there}
--
-- A blob's holds are a sorted set, holder -> until (milliseconds, server's clock). Its place
-- is a string that ends when the promise of the tier where it lies does. Such a blob has no
-- key of its own that could expire: its life is noted among the holds, as '@life'. (Other
-- names that begin with @ are of who is about to store it.)
--
-- Why a script: between "it is there" and "keep it" a blob could end; and the life must
-- not be shortened, which before Redis 7 no command says (PEXPIRE ... GT).
-- A key without an expiry (PTTL -1) stays without.

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
