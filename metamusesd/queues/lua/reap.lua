-- reap · sweep deadlines, delayed jobs and expired leases; take over from an older self
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap owner takeover(0|1), then for each doubted lease: id lease_end
-- reply suspects(id lease_end …) requeued(id …) expired(id …) woken(id …) more(0|1)
--
-- A lease is reaped, unburnt, only when it has expired and its end is still what the caller saw in an earlier sweep (a
-- suspect); new ones come back as suspects. `takeover` gives back what `<instance>:<other nonce>` holds, when owner is
-- `<instance>:<nonce>`: for a dispatcher that has just replaced a dead one. Each part does SWEEP entries at most.

local HEAD, SWEEP = 5, 200
local suspects, requeued, expired, woken, more = {}, {}, {}, {}, 0

local function due(key)
  return call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, SWEEP)
end

local function release(id, job, reason)
  call('ZREM', p .. ':leases', id)
  if not job or job.state ~= 'running' then return end
  if overdue(job) then
    finish(id, job, 'expired', failure(id, job, 'expired', "The job's deadline passed."))
    expired[#expired + 1] = id
  else
    give_back(id, job, reason, 0, false)
    requeued[#requeued + 1] = id
  end
end

local function take_over(owner)
  local instance = string.match(owner, '^(.*):[^:]*$')
  if not instance then return end
  for _, id in ipairs(call('ZRANGE', p .. ':leases', 0, -1)) do
    local job = read(id)
    if #requeued + #expired >= SWEEP then more = 1 return end
    if not job or job.owner ~= owner and string.match(job.owner, '^(.*):[^:]*$') == instance then
      release(id, job, 'dispatcher_restarted')
    end
  end
end

local function sweep_deadlines()
  local ids = due(p .. ':deadlines')
  if #ids == SWEEP then more = 1 end
  for _, id in ipairs(ids) do
    local job = read(id)
    if not job or TERMINAL[job.state] then
      call('ZREM', p .. ':deadlines', id)
    else
      expire(id, job)
      expired[#expired + 1] = id
    end
  end
end

local function wake_delayed()
  local ids = due(p .. ':delayed')
  if #ids == SWEEP then more = 1 end
  for _, id in ipairs(ids) do
    call('ZREM', p .. ':delayed', id)
    local job = read(id)
    if job and job.state == 'delayed' then
      put_back(id, job)
      woken[#woken + 1] = id
    end
  end
end

-- Never asks to be called again at once: between two looks at a lease there must be time for a renewal.
local function sweep_leases()
  local seen = {}
  for a = HEAD + 1, #ARGV - 1, 2 do seen[ARGV[a]] = ARGV[a + 1] end
  for _, id in ipairs(due(p .. ':leases')) do
    local lease_end = format('%.0f', call('ZSCORE', p .. ':leases', id))
    if seen[id] == lease_end then
      release(id, read(id), 'lease_expired')
    else
      suspects[#suspects + 1] = id
      suspects[#suspects + 1] = lease_end
    end
  end
end

if #ARGV < HEAD or (#ARGV - HEAD) % 2 ~= 0 or not tonumber(ARGV[1]) then
  return invalid('arguments', 'do not add up', 'see the head of reap.lua')
end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
if ARGV[5] == '1' then take_over(ARGV[4]) end
sweep_deadlines()
wake_delayed()
sweep_leases()
close()
return {suspects, requeued, expired, woken, more}
