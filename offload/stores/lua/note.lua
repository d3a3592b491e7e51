-- Record the locations of blobs that were stored in another tier.
--
-- KEYS     three for each: the blob, its holds, its location (one slot in a Cluster)
-- ARGV[1]  the location: a new random word, a space, the tier
-- ARGV[2]  minimum lifetime in milliseconds
-- ARGV[3]  the holder that reserved them
-- ARGV     one more for each: milliseconds that the tier promised
-- returns  for each: milliseconds now recorded as promised
--
-- For the keys, see hold.lua. A lifetime without a location belongs to a deleted blob.
--
-- Why a script: lifetimes and promises are only ever extended, even by concurrent writers.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = string.format('%.0f', now)
local life = tonumber(ARGV[2])
local until_ = string.format('%.0f', now + life)
local tier = string.match(ARGV[1], ' (.*)')
local promises = {}
for i = 1, #KEYS, 3 do
  local holds, place = KEYS[i + 1], KEYS[i + 2]
  redis.call('ZREMRANGEBYSCORE', holds, '-inf', over)
  redis.call('ZREM', holds, ARGV[3])
  local promised = tonumber(ARGV[3 + (i + 2) / 3])
  local old = redis.call('GET', place)
  if old and redis.call('ZSCORE', holds, '@life') then
    redis.call('ZADD', holds, 'GT', until_, '@life')
    if string.match(old, ' (.*)') == tier then
      promised = math.max(promised, redis.call('PTTL', place))
    end
  else
    redis.call('ZADD', holds, until_, '@life')
  end
  redis.call('SET', place, ARGV[1], 'PX', string.format('%.0f', promised))
  if redis.call('PTTL', holds) < life then
    redis.call('PEXPIRE', holds, ARGV[2])
  end
  promises[#promises + 1] = promised
end
return promises
