-- Compare and swap a pointer.
--
-- KEYS[1]  the pointer
-- ARGV[1]  '1' if it is expected to be set, '0' if unset
-- ARGV[2]  its expected value (if set)
-- ARGV[3]  '1' to set it, '0' to unset it
-- ARGV[4]  its new value (if set)
-- returns  1 if done, 0 if the pointer was not as expected
--
-- Why a script: no other write may come between the comparison and the write.

local now = redis.call('GET', KEYS[1]) -- false if unset
local expected = ARGV[1] == '1' and ARGV[2]
if now ~= expected then
  return 0
end
if ARGV[3] == '1' then
  redis.call('SET', KEYS[1], ARGV[4])
else
  redis.call('DEL', KEYS[1])
end
return 1
