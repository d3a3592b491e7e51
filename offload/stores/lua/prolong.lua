-- Make a blob live long enough, if it is there.
--
-- KEYS[1]  the blob
-- ARGV[1]  milliseconds that it shall live at least
-- returns  1 or 0: there (and kept) or not
--
-- Why a script: see hold.lua.

local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return left == -2 and 0 or 1
