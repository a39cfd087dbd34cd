-- configure · publish the limits that hold for every producer
--
-- KEYS  p
-- ARGV  name value, as often as needed; names as in base.Limits, those of a class with `:<priority>` behind them:
--       max_jobs max_bytes max_tenant_jobs max_crashes result_ttl_s stream_cap mail_cap strand_ms
--       max_queue_size:<0…3> max_wait_ms:<0…3> timeout_ms:<0…3> timeout_action:<0…3>(reject|delay)
-- reply 1
--
-- What is not named stays as it is. Until the first call the defaults of base.Limits hold.

local NAMES = {max_jobs = true, max_bytes = true, max_tenant_jobs = true, max_crashes = true, result_ttl_s = true,
               stream_cap = true, mail_cap = true, strand_ms = true, ['max_queue_size:'] = true,
               ['max_wait_ms:'] = true, ['timeout_ms:'] = true, ['timeout_action:'] = true}

if #ARGV == 0 or #ARGV % 2 ~= 0 then return invalid('arguments', 'do not add up', 'give name value, name value …') end
for a = 1, #ARGV, 2 do
  local name, value = ARGV[a], ARGV[a + 1]
  if not NAMES[string.gsub(name, ':[0-3]$', ':')] then
    return invalid('name', 'unknown', 'see the head of configure.lua')
  elseif string.match(name, '^timeout_action') then
    if value ~= 'reject' and value ~= 'delay' then return invalid(name, 'not an action', 'give reject or delay') end
  elseif not string.match(value, '^%d+$') then
    return invalid(name, 'not a number', 'give a whole number')
  end
end
call('HDEL', p .. ':limits', '') -- a removal first: a daemon must be able to start when memory is full
call('HSET', p .. ':limits', unpack(ARGV))
return 1
