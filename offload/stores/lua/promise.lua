-- Record a longer promise for blobs in another tier.
--
-- KEYS     for each: its location (one slot in a Cluster)
-- ARGV     two for each: the location as it was read, milliseconds that the tier promised
-- returns  for each: 1, or 0 if the location has changed
--
-- Why a script: storing a blob again writes a new location, for which a promise for the old
-- version doesn't count.

local done = {}
for i = 1, #KEYS do
  local same = redis.call('GET', KEYS[i]) == ARGV[2 * i - 1]
  if same and redis.call('PTTL', KEYS[i]) < tonumber(ARGV[2 * i]) then
    redis.call('PEXPIRE', KEYS[i], ARGV[2 * i])
  end
  done[i] = same and 1 or 0
end
return done
