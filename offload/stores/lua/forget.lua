-- Drop notes of blobs that do not lie there any more.
--
-- KEYS     two for each: its place, its holds (in a Cluster: of one slot)
-- ARGV     for each: its note as it was seen
-- returns  how many were dropped
--
-- Why a script: who stores a blob anew notes so, and that note stays.

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
