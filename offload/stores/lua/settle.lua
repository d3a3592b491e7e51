-- Write a pointer and release the lease of the same name.
--
-- KEYS[1]  the pointer
-- KEYS[2]  the lease: a hash of owner, fence, until (milliseconds, server's clock), and asked,
--          which is set once another owner wanted it
-- KEYS[3]  a list that has one element after a release, for one client that waits (BLPOP); nobody
--          waits for a lease that nobody asked for
-- ARGV[1]  owner
-- ARGV[2]  '1' if the pointer is expected to be set, '0' if unset
-- ARGV[3]  its expected value (if set)
-- ARGV[4]  its new value
-- ARGV[5]  milliseconds until it expires
-- ARGV[6]  milliseconds until the list's element expires, as nobody may be waiting
-- returns  1 if done, 0 if the owner doesn't have the lease (any longer), nil if the pointer was not
--          as expected
--
-- Why a script: an owner that lost the lease must not write.
--
-- The lease is deleted: there is one for each call, and fencing numbers are times.

local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local lease = redis.call('HMGET', KEYS[2], 'owner', 'until', 'asked')
if lease[1] ~= ARGV[1] or tonumber(lease[2]) <= now then
  return 0
end
if redis.call('GET', KEYS[1]) ~= (ARGV[2] == '1' and ARGV[3]) then
  return nil
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
redis.call('DEL', KEYS[2])
if lease[3] then
  if redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('RPUSH', KEYS[3], '1')
  end
  redis.call('PEXPIRE', KEYS[3], ARGV[6])
end
return 1
