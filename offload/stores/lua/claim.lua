-- Read a pointer, or acquire the lease of the same name if the pointer is unset.
--
-- KEYS[1]  the pointer
-- KEYS[2]  the lease: a hash of owner, fence, until (milliseconds, server's clock), and asked,
--          which tells its owner that somebody may wait for the end
-- ARGV[1]  owner
-- ARGV[2]  milliseconds to hold the lease
-- ARGV[3]  milliseconds to remember its fencing number after that
-- returns  {value} if the pointer is set; {nil, fencing number} if the lease was acquired (or
--          renewed for its owner); {nil, nil, milliseconds left} if another owner has it
--
-- Why a script: one round trip, and a result that is written meanwhile can't be missed. For the
-- fencing number, see acquire.lua.

local value = redis.call('GET', KEYS[1])
if value then
  return {value}
end
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local lease = redis.call('HMGET', KEYS[2], 'owner', 'fence', 'until')
local fence = tonumber(lease[2] or '0')
local left = tonumber(lease[3] or '0') - now
if left > 0 then
  if lease[1] ~= ARGV[1] then
    redis.call('HSET', KEYS[2], 'asked', '1')
    return {false, false, left}
  end
else
  fence = math.max(micros, fence + 1)
end
local until_ = now + tonumber(ARGV[2])
redis.call('HSET', KEYS[2], 'owner', ARGV[1],
  'fence', string.format('%.0f', fence), 'until', string.format('%.0f', until_))
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', ARGV[2] + ARGV[3]))
return {false, fence}
