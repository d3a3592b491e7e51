-- Delete blobs that have no hold, including reservations for an upload.
--
-- KEYS     three for each: the blob, its holds, its location (one slot in a Cluster)
-- returns  for each: 1 if it has one, and stays; else 0
--
-- For the keys, see hold.lua. If another tier has the blob, its lifetime ends, and its location
-- stays, by which the next sweep finds it.
--
-- Why a script: a hold may be added between the check and the deletion.

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
