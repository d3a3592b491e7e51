-- Keep blobs for a holder, and tell which of them are there.
--
-- KEYS     three for each: the blob, its holds, its place (in a Cluster: of one slot)
-- ARGV[1]  milliseconds that they shall live at least
-- ARGV[2]  holder
-- returns  for each: 1 if the blob is there (and kept), else 0; or, where a place is noted,
--          {the place, milliseconds that it was promised there}
--
-- A blob's holds are a sorted set, holder -> until (milliseconds, server's clock). Its place
-- is where else it lies: a string that ends when that place's promise does.
--
-- Why a script: between "it is there" and "keep it" a blob could end; and the life must
-- not be shortened, which before Redis 7 no command says (PEXPIRE ... GT).
-- A key without an expiry (PTTL -1) stays without.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl = tonumber(ARGV[1])
local over = string.format('%.0f', now)
local until_ = string.format('%.0f', now + ttl)
local found = {}
for i = 1, #KEYS, 3 do
  local blob, holds, place = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  redis.call('ZREMRANGEBYSCORE', holds, '-inf', over)
  redis.call('ZADD', holds, 'GT', until_, ARGV[2])
  if redis.call('PTTL', holds) < ttl then
    redis.call('PEXPIRE', holds, ARGV[1])
  end
  local left = redis.call('PTTL', blob)
  if left ~= -2 then
    found[#found + 1] = 1
    if left >= 0 and left < ttl then
      redis.call('PEXPIRE', blob, ARGV[1])
    end
  else
    local elsewhere = redis.call('GET', place)
    found[#found + 1] = elsewhere and { elsewhere, redis.call('PTTL', place) } or 0
  end
end
return found
