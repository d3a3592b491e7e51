-- Add a process's counters to the total and to the series.
--
-- KEYS[1]  the total; other keys start with it and, in a Cluster, are in its slot
-- ARGV[1]  the process
-- ARGV[2]  sequence number of its batch
-- ARGV[3]  how many names a total may have
-- ARGV[4]  number of the following arguments for the total: name, amount, name, amount ...
-- ARGV[5..]  those, then those for the series
-- returns  1 if they were added, 0 if they had been added before
--
-- Why a script: the time is the server's, a batch that arrives twice counts once, and a full
-- total accepts no further names.

local seen = KEYS[1] .. ':seen:' .. ARGV[1]
if redis.call('GET', seen) == ARGV[2] then
    return 0
end
redis.call('SET', seen, ARGV[2], 'EX', 3600)

local now = tonumber(redis.call('TIME')[1])
local most = tonumber(ARGV[3])

local function add(key, from, to, name)
    local room = most - redis.call('HLEN', key)
    for i = from, to, 2 do
        local field = name(ARGV[i])
        local left = room
        if string.find(field, '\31object:', 1, true) then
            left = room - most / 2  -- objects of the catalog take at most half
        end
        if left <= 0 and redis.call('HEXISTS', key, field) == 0 then
            field = string.match(field, '^[^\31]*') .. '\31(other)\31'
        elseif room > 0 then
            room = room - 1
        end
        redis.call('HINCRBY', key, field, ARGV[i + 1])
    end
end

local function same(field) return field end
local function bare(field) return string.match(field, '^[^\31]*') end

local first = 5
local last = 4 + tonumber(ARGV[4])
add(KEYS[1], first, last, same)
for _, span in ipairs({{'minute', 60, 10800, bare}, {'hour', 3600, 259200, same}, {'day', 86400, 7776000, same}}) do
    local key = KEYS[1] .. ':' .. span[1] .. ':' .. (now - now % span[2])
    add(key, last + 1, #ARGV, span[4])
    redis.call('EXPIRE', key, span[3])
end
return 1
