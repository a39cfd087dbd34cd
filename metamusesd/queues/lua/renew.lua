-- renew · prolong leases
--
-- KEYS  p
-- ARGV  lease_ms, then for each job: id token
-- reply for each job: ok | cancelled | expired | lost. `expired` says that the deadline has passed: the lease is prolonged
--       once more, so that its holder can settle the job with what it has; else the reaper does.

local lease_ms = tonumber(ARGV[1])
if not lease_ms or lease_ms <= 0 or #ARGV % 2 == 0 then
  return invalid('arguments', 'do not add up', 'give lease_ms, then id and token for each job')
end
local lease_end = format('%.0f', now + lease_ms)
local reply, fields = {}, {'state', 'token', 'deadline'}
for a = 2, #ARGV, 2 do
  local id, job = ARGV[a], read(ARGV[a], fields)
  local holds, verdict = held(job, ARGV[a + 1])
  if holds then
    call('ZREM', p .. ':leases', id) -- a removal first: a lease must be renewable when memory is full
    call('ZADD', p .. ':leases', lease_end, id)
    if overdue(job) then verdict = 'expired' end
  end
  reply[#reply + 1] = verdict
end
return reply
