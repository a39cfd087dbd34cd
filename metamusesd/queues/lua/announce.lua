-- announce · register a dispatcher among the live hosts, until its time-to-live ends
--
-- KEYS  p
-- ARGV  owner ttl_ms tiers(separated by spaces) rates(JSON, jobs/s by tier)
-- reply 1

local ttl_ms = tonumber(ARGV[2])
if #ARGV ~= 4 or not ttl_ms or ttl_ms <= 0 then
  return invalid('arguments', 'do not add up', 'give owner ttl_ms tiers rates')
end
call('ZREMRANGEBYSCORE', p .. ':hosts', '-inf', now)
call('ZADD', p .. ':hosts', now + ttl_ms, ARGV[1])
call('PEXPIRE', p .. ':hosts', ttl_ms)
call('HSET', p .. ':host:' .. ARGV[1], 'tiers', ARGV[3], 'rates', ARGV[4], 'seen', now)
call('PEXPIRE', p .. ':host:' .. ARGV[1], ttl_ms)
return 1
