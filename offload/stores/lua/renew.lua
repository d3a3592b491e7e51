-- Extend a lease, or release it.
--
-- KEYS[1]  the lease: a hash of owner, fence, and until (milliseconds, server's clock)
-- KEYS[2]  a list that has one element after a release, for one client that waits (BLPOP)
-- ARGV[1]  owner
-- ARGV[2]  milliseconds from now to hold it; 0 releases it
-- ARGV[3]  milliseconds to remember the fencing number after that
-- ARGV[4]  milliseconds until the element expires, as nobody may be waiting
-- returns  1 if done, 0 if the owner doesn't have the lease (any longer)
--
-- Why a script: another owner could take the lease between the check and the write.

local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local lease = redis.call('HMGET', KEYS[1], 'owner', 'until')
if lease[1] ~= ARGV[1] or tonumber(lease[2]) <= now then
  return 0
end
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[2] + ARGV[3]))
if tonumber(ARGV[2]) == 0 then
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('RPUSH', KEYS[2], '1')
  end
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return 1
