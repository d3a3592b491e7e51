-- Acquire a lease, or renew it for its owner.
--
-- KEYS[1]  the lease: a hash of owner, fence, and until (milliseconds, server's clock)
-- ARGV[1]  owner
-- ARGV[2]  milliseconds to hold it
-- ARGV[3]  milliseconds to remember the fencing number after that
-- returns  the fencing number, or nil if another owner has the lease
--
-- Why a script: checking and taking must be atomic, by one clock.
--
-- A fencing number is the server's time in microseconds, or the last number plus one if the
-- clock hasn't advanced. So it keeps rising after the lease was forgotten (a counter would
-- restart) and after a failover lost the last writes, and names that are used only once leave
-- nothing behind.

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local lease = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'until')
local fence = tonumber(lease[2] or '0')
if tonumber(lease[3] or '0') > now then
  if lease[1] ~= ARGV[1] then
    return nil
  end
else
  fence = math.max(micros, fence + 1)
end
local until_ = now + tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'owner', ARGV[1],
  'fence', string.format('%.0f', fence), 'until', string.format('%.0f', until_))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[2] + ARGV[3]))
return fence
