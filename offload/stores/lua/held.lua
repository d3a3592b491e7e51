-- Count who holds blobs.
--
-- KEYS     three for each: the blob, its holds, its place (in a Cluster: of one slot)
-- returns  for each: how many hold it now
--
-- What the keys hold: see hold.lua. Names of our own (@…) are no holders; there are few.
--
-- Why a script: the server's time is needed to tell which holds have ended, and the holders of
-- one blob may be too many to be sent.

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
