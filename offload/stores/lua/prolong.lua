-- Extend a blob's lifetime, if it exists.
--
-- KEYS[1]  the blob
-- ARGV[1]  minimum lifetime in milliseconds
-- returns  1 if it exists (and was extended), else 0
--
-- Why a script: see hold.lua.

local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return left == -2 and 0 or 1
