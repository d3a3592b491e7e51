-- Delete locations of blobs that are no longer there.
--
-- KEYS     two for each: its location, its holds (one slot in a Cluster)
-- ARGV     for each: the location as it was read
-- returns  how many were deleted
--
-- Why a script: storing the blob again writes a new location, which must stay.

local dropped = 0
for i = 1, #ARGV do
  local place, holds = KEYS[2 * i - 1], KEYS[2 * i]
  if redis.call('GET', place) == ARGV[i] then
    redis.call('DEL', place)
    redis.call('ZREM', holds, '@life')
    dropped = dropped + 1
  end
end
return dropped
