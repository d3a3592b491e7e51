-- Count the holders of blobs.
--
-- KEYS     three for each: the blob, its holds, its location (one slot in a Cluster)
-- returns  for each: number of its holders
--
-- For the keys, see hold.lua. '@life' doesn't count; a writer's reservation does.
--
-- Why a script: only the server's clock tells which holds have expired, and a blob may have too
-- many holders to transfer.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = string.format('(%.0f', now)
local found = {}
for i = 1, #KEYS, 3 do
  local holds = KEYS[i + 1]
  local count = redis.call('ZCOUNT', holds, over, '+inf')
  local life = redis.call('ZSCORE', holds, '@life')
  if life and tonumber(life) > now then
    count = count - 1
  end
  found[#found + 1] = count
end
return found
