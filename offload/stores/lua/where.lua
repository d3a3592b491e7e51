-- Return the locations of blobs.
--
-- KEYS     three for each: the blob, its holds, its location (one slot in a Cluster)
-- returns  for each: 1 if the blob is here; 0 if it is nowhere; or {its location, remaining
--          milliseconds of the tier's promise, of its lifetime, and of its last hold}, each 0 if
--          it has passed
--
-- For the keys, see hold.lua.
--
-- Why a script: a blob may move between tiers while several commands run, and be found nowhere.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function left(score)
  return score and math.max(tonumber(score) - now, 0) or 0
end

local found = {}
for i = 1, #KEYS, 3 do
  local blob, holds, place = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  if redis.call('EXISTS', blob) == 1 then
    found[#found + 1] = 1
  else
    local note = redis.call('GET', place)
    found[#found + 1] = note and {
      note,
      redis.call('PTTL', place),
      left(redis.call('ZSCORE', holds, '@life')),
      left(redis.call('ZREVRANGE', holds, 0, 0, 'WITHSCORES')[2]),
    } or 0
  end
end
return found
