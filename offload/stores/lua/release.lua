-- Give up a holder's holds.
--
-- KEYS     three for each: the blob, its holds, its place (in a Cluster: of one slot)
-- ARGV[1]  holder
-- ARGV[2]  milliseconds that a blob lives on at least
-- ARGV[3]  the holder in whose name a blob that lies elsewhere is kept for that time
-- returns  how many holds there were
--
-- Why a script: somebody may take a hold between the look at those that are left and the
-- shortening of the life.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = string.format('%.0f', now)
local grace = tonumber(ARGV[2])
local released = 0
for i = 1, #KEYS, 3 do
  local blob, holds, place = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  redis.call('ZREMRANGEBYSCORE', holds, '-inf', over)
  if redis.call('ZREM', holds, ARGV[1]) == 1 then
    released = released + 1
    local last = redis.call('ZREVRANGE', holds, 0, 0, 'WITHSCORES')
    local left = last[2] and tonumber(last[2]) - now or 0
    if left < grace then
      left = grace
      if redis.call('EXISTS', place) == 1 then
        redis.call('ZADD', holds, 'GT', string.format('%.0f', now + grace), ARGV[3])
      end
    end
    -- Only ever shorter: the key was made to last until its latest hold.
    if redis.call('PTTL', holds) > left then
      redis.call('PEXPIRE', holds, string.format('%.0f', left))
    end
    if redis.call('PTTL', blob) > left then
      redis.call('PEXPIRE', blob, string.format('%.0f', left))
    end
  end
end
return released
