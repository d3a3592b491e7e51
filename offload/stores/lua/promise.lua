-- Note that more was promised for blobs that lie elsewhere.
--
-- KEYS     for each: its place (in a Cluster: of one slot)
-- ARGV     two for each: its note as it was seen, milliseconds that the tier promised
-- returns  for each: 1, or 0 if the note is another one by now
--
-- Why a script: who stores a blob anew notes so, and what was promised for the old version
-- does not hold for the new one.

local done = {}
for i = 1, #KEYS do
  local same = redis.call('GET', KEYS[i]) == ARGV[2 * i - 1]
  if same and redis.call('PTTL', KEYS[i]) < tonumber(ARGV[2 * i]) then
    redis.call('PEXPIRE', KEYS[i], ARGV[2 * i])
  end
  done[i] = same and 1 or 0
end
return done
