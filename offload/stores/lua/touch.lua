-- Tell which blobs are there, and make those live long enough.
--
-- KEYS     any number of blobs (in a Cluster: of one slot)
-- ARGV[1]  milliseconds that they shall live at least
-- returns  1 or 0 for each key: there (and kept) or not
--
-- Why a script: between "it is there" and "keep it" a blob could expire; and the life
-- must not be shortened, which before Redis 7 no command says (PEXPIRE ... GT).
-- A key without an expiry (PTTL -1) stays without.

local ttl = tonumber(ARGV[1])
local there = {}
for i, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  there[i] = left == -2 and 0 or 1
  if left >= 0 and left < ttl then
    redis.call('PEXPIRE', key, ARGV[1])
  end
end
return there
