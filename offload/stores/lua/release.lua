-- Release a holder's holds.
--
-- KEYS     three for each: the blob, its holds, its location (one slot in a Cluster)
-- ARGV[1]  holder
-- ARGV[2]  minimum remaining lifetime of a blob in milliseconds
-- returns  how many holds were released
--
-- For the keys, see hold.lua.
--
-- Why a script: a hold may be added between reading the remaining holds and shortening the
-- lifetime.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = string.format('%.0f', now)
local grace = tonumber(ARGV[2])
local released = 0

-- Milliseconds until the last hold expires: of holders only, or of all names.
local function last(holds, all)
  local at = 0
  while true do
    local found = redis.call('ZREVRANGE', holds, at, at, 'WITHSCORES')
    if not found[1] then
      return 0
    end
    if all or string.sub(found[1], 1, 1) ~= '@' then
      return tonumber(found[2]) - now
    end
    at = at + 1
  end
end

for i = 1, #KEYS, 3 do
  local blob, holds = KEYS[i], KEYS[i + 1]
  redis.call('ZREMRANGEBYSCORE', holds, '-inf', over)
  if redis.call('ZREM', holds, ARGV[1]) == 1 then
    released = released + 1
    local left = math.max(grace, last(holds, false))
    if redis.call('PTTL', blob) > left then
      redis.call('PEXPIRE', blob, string.format('%.0f', left))
    end
    local lives = redis.call('ZSCORE', holds, '@life')
    if lives and tonumber(lives) - now > left then
      redis.call('ZADD', holds, string.format('%.0f', now + left), '@life')
    end
    -- Only shortened: the key already lasts until its latest hold.
    local all = last(holds, true)
    if all > 0 and redis.call('PTTL', holds) > all then
      redis.call('PEXPIRE', holds, string.format('%.0f', all))
    end
  end
end
return released
