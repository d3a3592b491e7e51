-- Remove blobs that nobody holds or is about to store.
--
-- KEYS     three for each: the blob, its holds, its place (in a Cluster: of one slot)
-- returns  for each: 1 if somebody does, and it stays; else 0
--
-- What the keys hold: see hold.lua. Of a blob that lies elsewhere the life ends, and the note
-- stays, by which the next sweep finds it.
--
-- Why a script: somebody may take a hold between the look at those that there are and the removal.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = string.format('(%.0f', now)
local stay = {}
for i = 1, #KEYS, 3 do
  local blob, holds = KEYS[i], KEYS[i + 1]
  local count = redis.call('ZCOUNT', holds, over, '+inf')
  local life = redis.call('ZSCORE', holds, '@life')
  if life and tonumber(life) > now then
    count = count - 1
  end
  if count > 0 then
    stay[#stay + 1] = 1
  else
    redis.call('UNLINK', blob)
    redis.call('ZREM', holds, '@life')
    stay[#stay + 1] = 0
  end
end
return stay
