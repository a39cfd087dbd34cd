-- announce · register a dispatcher among the live hosts, with what it serves, until its time-to-live ends
--
-- KEYS  p
-- ARGV  owner ttl_ms, then for each tier: tier model identity free start_milli_hz factor_p50_milli factor_p90_milli
--       workers
--       identity: digest of all that makes its answers, for the caches; or `-` while nobody knows
--       free: places that a job could take now; start_milli_hz: jobs started in 1000 s while jobs waited, 0 when nobody
--       knows yet; the factors, times 1000: real wait / raw prediction, see position.lua; workers: ready now, with 0 the
--       tier is configured there and served by nobody, see reap.lua
-- reply 1
--
-- The same instance (owner = `<instance>:<nonce>`) under another nonce is forgotten: it was this one before a restart.
-- The hash `p:host:<owner>` holds tiers (separated by spaces), seen, and `tier:<tier>` = the five numbers,
-- the identity and the model.

local WIDTH, HEAD = 8, 2
local owner, ttl_ms = ARGV[1], tonumber(ARGV[2])

local function check()
  if #ARGV < HEAD or (#ARGV - HEAD) % WIDTH ~= 0 or not ttl_ms or ttl_ms <= 0 then
    return invalid('arguments', 'do not add up', 'see the head of announce.lua')
  elseif not string.match(owner, '^[%w_.:-]+$') then
    return invalid('owner', 'not a name', 'use A-Z a-z 0-9 _ . : -')
  end
  for a = HEAD, #ARGV - 1, WIDTH do
    if not string.match(ARGV[a + 1], '^[%w_-]+$') then
      return invalid('tier', 'not a name', 'use A-Z a-z 0-9 _ -')
    end
    if not string.match(ARGV[a + 3], '^[%w-]+$') then
      return invalid('identity', 'not a digest', 'use hexadecimal digits, or -')
    end
    for i = 4, WIDTH do
      if #ARGV[a + i] > 15 or not string.match(ARGV[a + i], '^%d+$') then
        return invalid('tier', 'one of its numbers is none', 'give whole numbers, 0 or more')
      end
    end
  end
end

local mistake = check()
if mistake then return mistake end
local key, hosts, tiers, fields = p .. ':host:' .. owner, p .. ':hosts', {}, {}
for a = HEAD, #ARGV - 1, WIDTH do
  tiers[#tiers + 1] = ARGV[a + 1]
  fields[#fields + 1] = 'tier:' .. ARGV[a + 1]
  fields[#fields + 1] = table.concat(ARGV, ' ', a + 4, a + WIDTH) .. ' ' .. ARGV[a + 3] .. ' ' .. ARGV[a + 2]
end
call('ZREMRANGEBYSCORE', hosts, '-inf', now)
local instance = string.match(owner, '^(.*):[^:]*$')
for _, other in ipairs(instance and call('ZRANGE', hosts, 0, -1) or {}) do -- an older self serves nothing any more
  if other ~= owner and string.match(other, '^(.*):[^:]*$') == instance then
    call('ZREM', hosts, other)
    call('DEL', p .. ':host:' .. other)
  end
end
call('DEL', key) -- what it does not serve any more
call('HSET', key, 'tiers', table.concat(tiers, ' '), 'seen', now_text, unpack(fields))
call('PEXPIRE', key, ttl_ms)
call('ZADD', hosts, format('%.0f', now + ttl_ms), owner)
if call('PTTL', hosts) < ttl_ms then call('PEXPIRE', hosts, ttl_ms) end -- another host may have promised to live longer
return 1
