-- reap · sweep deadlines, delayed jobs, class time-outs, expired leases and stranded jobs; take over from an older self
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap owner takeover(0|1) strand_ms(0: never) timeouts(ms, "low,normal,high,critical";
--       0: never) delays(the same form; 1: a job whose time is out goes on as class low, 0: it fails) n_tiers tier …,
--       then for each doubted lease: id lease_end
-- reply suspects(id lease_end …) requeued(id …) expired(id …) woken(id …) timed_out(id …) rerouted(id …) more(0|1)
--
-- A lease is reaped, unburnt, only when it has expired and its end is still what the caller saw in an earlier sweep (a
-- suspect); new ones come back as suspects. `takeover` gives back what `<instance>:<other nonce>` holds, when owner is
-- `<instance>:<nonce>`: for a dispatcher that has just replaced a dead one. Each part does SWEEP entries at most.
--
-- Time-outs are for jobs that have never started, and stand in ingress or in one of the tiers. Those of one class stand in
-- the order in which they came, so that only the front of each class is looked at. `patient` jobs have none: they lead a
-- flight for a higher class, or inherited one that had started.
-- Stranded: jobs wait in one of the tiers, and no live host has had a worker for it for strand_ms. They leave it, and go back to
-- ingress if no other of their tiers is served.
-- Server's clock put back: a lease, a host or a delay that ends later than any can, is over as well (the doubt protects
-- whoever still renews), and a tier that is unserved from the future on is so from now on.
-- A sweep also writes what all live hosts start in 1000 s to the limits (drain_milli_hz), for the producers' retry_after.

local HEAD, SWEEP, STEP = 9, 200, 20
local LEASE_MOST_MS, DELAY_MOST_MS = 3600000, 86400000 -- more than any configuration allows
local n_tiers, strand_ms = tonumber(ARGV[9]), tonumber(ARGV[6])

-- A text with four numbers, low class first, by priority.
local function by_class(text)
  local low, normal, high, critical = string.match(text or '', '^(%d+),(%d+),(%d+),(%d+)$')
  return low and {[0] = tonumber(low), tonumber(normal), tonumber(high), tonumber(critical)}
end

local move, more_of, timeouts, delays = moves(), rare(), by_class(ARGV[7]), by_class(ARGV[8])
local suspects, requeued, expired, woken, timed_out, rerouted, more = {}, {}, {}, {}, {}, {}, 0
local tiers, served = {}, {}

local function due(key, most_ms)
  local ids = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, SWEEP)
  if #ids > 0 or not most_ms then return ids end
  return call('ZRANGEBYSCORE', key, '(' .. format('%.0f', now + most_ms), '+inf', 'LIMIT', 0, SWEEP)
end

-- A removal comes first in every sweep: what follows it is allowed when memory is full.
local function meet_hosts()
  local drain = 0
  call('ZREMRANGEBYSCORE', p .. ':hosts', '-inf', now)
  call('ZREMRANGEBYSCORE', p .. ':hosts', now + LEASE_MOST_MS, '+inf')
  for _, owner in ipairs(call('ZRANGE', p .. ':hosts', 0, -1)) do
    local said = redis.pcall('HGETALL', p .. ':host:' .. owner)
    for i = 1, #said, 2 do
      local tier = string.match(said[i], '^tier:(.+)$')
      if tier then
        served[tier] = served[tier] or string.match(said[i + 1], '^%d+ %d+ %d+ %d+ [1-9]') ~= nil
        drain = drain + (tonumber(string.match(said[i + 1], '^%d+ (%d+) ')) or 0)
      end
    end
  end
  if drain > 0 then
    call('HSET', p .. ':limits', 'drain_milli_hz', format('%.0f', drain))
  else
    call('HDEL', p .. ':limits', 'drain_milli_hz')
  end
end

local function release(id, job, reason)
  call('ZREM', p .. ':leases', id)
  if not job or job.state ~= 'running' then return end
  if overdue(job) then
    move.finish(id, job, 'expired', move.failure(id, job, 'expired', "The job's deadline passed."))
    expired[#expired + 1] = id
  else
    move.give_back(id, job, reason, 0, false)
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
    if not job or terminal(job.state) or not overdue(job) then
      call('ZREM', p .. ':deadlines', id)
    else
      move.expire(id, job)
      expired[#expired + 1] = id
    end
  end
end

local function wake_delayed()
  local ids = due(p .. ':delayed', DELAY_MOST_MS)
  if #ids == SWEEP then more = 1 end
  for _, id in ipairs(ids) do
    call('ZREM', p .. ':delayed', id)
    local job = read(id)
    if job and job.state == 'delayed' then
      move.put_back(id, job)
      woken[#woken + 1] = id
    end
  end
end

-- The job goes behind all that came before it into class low, and is counted there.
local function demote(id, job)
  move.take_out(id, job)
  counting().count(id, job, -1)
  job.prio, job.score = '0', format('%.0f', 3 * STRIDE + score_of(job) % STRIDE)
  counting().count(id, job, 1)
  move.put_back(id, job, 'prio', '0', 'score', job.score)
end

-- Its heirs, if it led a flight, go with it as long as their own time is out: not one a sweep.
local function refuse(id, job, prio, timeout_ms)
  local jobs = tonumber(call('HGET', p .. ':counters', 'jobs') or 0)
  local retry_after_ms = more_of.room_after_ms(jobs, more_of.published('drain_milli_hz').drain_milli_hz)
  move.take_out(id, job)
  move.finish(id, job, 'failed', move.failure(id, job, 'failed', 'The job waited longer than its class may.',
                                              'queue_timeout', retry_after_ms))
  local heir = job.flight ~= '' and redis.pcall('HGET', p .. ':flight:' .. job.flight, 'leader')
  local next_one = type(heir) == 'string' and read(heir)
  if next_one and next_one.patient ~= '1' and tonumber(next_one.prio) == prio
    and now - (tonumber(next_one.submitted) or now) >= timeout_ms then
    timed_out[#timed_out + 1] = heir
    return refuse(heir, next_one, prio, timeout_ms) -- a tail call
  end
end

local function sweep_class(queue, prio, timeout_ms, delay)
  local expected = queue == 'ingress' and 'queued' or 'ready'
  local key, low, stay = queue_key(queue), (3 - prio) * STRIDE, 0
  local bottom, top = format('%.0f', low), '(' .. format('%.0f', low + STRIDE)
  for _ = STEP, SWEEP, STEP do
    local ids = call('ZRANGEBYSCORE', key, bottom, top, 'LIMIT', stay, STEP)
    for _, id in ipairs(ids) do
      local job = read(id)
      if not job or job.state ~= expected then
        call('ZREM', key, id)
      elseif job.attempt ~= '1' or job.started == '1' or job.patient == '1' or delay and prio == 0 then
        stay = stay + 1
      elseif now - (tonumber(job.submitted) or now) < timeout_ms then
        return
      else
        timed_out[#timed_out + 1] = id
        if delay then demote(id, job) else refuse(id, job, prio, timeout_ms) end
      end
    end
    if #ids < STEP then return end
  end
  if stay < SWEEP then more = 1 end
end

local function sweep_timeouts()
  for prio = 0, 3 do -- low first: what goes on as class low now is not looked at again
    if timeouts[prio] > 0 then
      sweep_class('ingress', prio, timeouts[prio], delays[prio] == 1)
      for _, tier in ipairs(tiers) do sweep_class(tier, prio, timeouts[prio], delays[prio] == 1) end
    end
  end
end

-- Takes the job out of the tier; true when it is served nowhere else, and so goes back to ingress.
local function reroute(id, job, tier)
  local others, elsewhere = {}, false
  for other in string.gmatch(job.tiers, '%S+') do
    if other ~= tier then others[#others + 1], elsewhere = other, elsewhere or served[other] end
  end
  if elsewhere then
    call('ZREM', queue_key(tier), id)
    call('HSET', key_of(id), 'tiers', table.concat(others, ' '))
    return false
  end
  move.take_out(id, job)
  job.tiers = ''
  move.put_back(id, job, 'tiers', '', 'reason', 'stranded')
  return true
end

local function sweep_stranded(tier)
  local ids = call('ZRANGE', queue_key(tier), 0, SWEEP - 1)
  if #ids == SWEEP then more = 1 end
  for _, id in ipairs(ids) do
    local job = read(id)
    if not job or job.state ~= 'ready' then
      call('ZREM', queue_key(tier), id)
    elseif reroute(id, job, tier) then
      rerouted[#rerouted + 1] = id
    end
  end
end

local function look_for_stranded()
  local key = p .. ':unserved'
  for _, tier in ipairs(tiers) do
    if served[tier] or call('EXISTS', queue_key(tier)) == 0 then
      call('HDEL', key, tier)
    else
      local since = tonumber(call('HGET', key, tier) or nil)
      if not since or since > now then call('HSET', key, tier, now_text) end
      call('PEXPIRE', key, format('%.0f', strand_ms + 60000))
      if since and now - since >= strand_ms then sweep_stranded(tier) end
    end
  end
end

-- Never asks to be called again at once: between two looks at a lease there must be time for a renewal.
local function sweep_leases()
  local seen = {}
  for a = HEAD + n_tiers + 1, #ARGV - 1, 2 do seen[ARGV[a]] = ARGV[a + 1] end
  for _, id in ipairs(due(p .. ':leases', LEASE_MOST_MS)) do
    local lease_end = format('%.0f', call('ZSCORE', p .. ':leases', id))
    if seen[id] == lease_end then
      release(id, read(id), 'lease_expired')
    else
      suspects[#suspects + 1] = id
      suspects[#suspects + 1] = lease_end
    end
  end
end

if not (n_tiers and strand_ms and timeouts and delays and tonumber(ARGV[1])) or #ARGV < HEAD + n_tiers
  or (#ARGV - HEAD - n_tiers) % 2 ~= 0 then
  return invalid('arguments', 'do not add up', 'see the head of reap.lua')
end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
for i = 1, n_tiers do tiers[i] = ARGV[HEAD + i] end
meet_hosts()
if ARGV[5] == '1' then take_over(ARGV[4]) end
sweep_deadlines()
wake_delayed()
sweep_timeouts()
sweep_leases()
if strand_ms > 0 then look_for_stranded() end
close()
return {suspects, requeued, expired, woken, timed_out, rerouted, more}
