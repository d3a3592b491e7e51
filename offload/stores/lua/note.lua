-- Note where blobs lie that were stored elsewhere.
--
-- KEYS     three for each: the blob, its holds, its place (in a Cluster: of one slot)
-- ARGV[1]  the note: a word that is new, a space, the tier
-- ARGV[2]  milliseconds that they shall live at least
-- ARGV[3]  in whose name they were reserved
-- ARGV     one more for each: milliseconds that the tier promised
-- returns  for each: milliseconds that are now noted as promised
--
-- What the keys hold: see hold.lua. A life without a note is of a blob that is gone.
--
-- Why a script: a life and a promise only get longer, whoever notes one meanwhile.

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
