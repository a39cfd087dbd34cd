-- place.lua · where a job stands, for position.lua and push.lua: it comes between common.lua and their text
--
-- A job that follows another one (common.lua, flights) stands where that one stands.

local services, live_hosts, max_waits = {}, nil, nil -- read once a call

-- What the live hosts announced for `tier`, together: free places, starts in 1000 s, factors weighted by the starts.
local function service(tier)
  if services[tier] then return services[tier] end
  local sum = {free = 0, milli_hz = 0, p50 = 0, p90 = 0}
  live_hosts = live_hosts or call('ZRANGEBYSCORE', p .. ':hosts', '(' .. now_text, '+inf')
  for _, owner in ipairs(live_hosts) do
    local said = call('HGET', p .. ':host:' .. owner, 'tier:' .. tier) or ''
    local free, milli_hz, p50, p90 = string.match(said, '^(%d+) (%d+) (%d+) (%d+) ')
    if free then
      sum.free, sum.milli_hz = sum.free + free, sum.milli_hz + milli_hz
      sum.p50, sum.p90 = sum.p50 + milli_hz * p50, sum.p90 + milli_hz * p90
    end
  end
  services[tier] = sum
  return sum
end

-- Milliseconds until a job with `ahead` jobs before it starts in `tier`, p50 and p90; NEVER when nobody has measured:
--   start_pX = factor_pX · (ahead + 1 - free places) / starts a second
local function start_of(tier, ahead)
  local sum = service(tier)
  if sum.milli_hz == 0 then return NEVER, NEVER end
  local raw = math.max(0, ahead + 1 - sum.free) / sum.milli_hz * 1000 -- factors and starts come times 1000: this is ms
  return math.floor(raw * (sum.p50 / sum.milli_hz) + 0.5), math.floor(raw * (sum.p90 / sum.milli_hz) + 0.5)
end

-- How many of `size` jobs of one class, the first of them at rank `first`, were submitted at `since_ms` or before. They
-- stand by age, so halving finds it; it asks for the first one first, which is mostly enough.
local function older(queue, first, size, since_ms)
  local low, high, middle = 0, size, 0
  while low < high do
    local id = call('ZRANGE', queue_key(queue), first + middle, first + middle)[1]
    local submitted = tonumber(redis.pcall('HGET', key_of(id), 'submitted') or nil) or now
    if submitted <= since_ms then low = middle + 1 else high = middle end
    middle = math.floor((low + high) / 2)
  end
  return low
end

local classes = {} -- read once a call and queue

-- The classes of a queue by priority: rank of the first job, how many, how many of these are aged, and max_wait.
local function classes_of(queue, max_waits)
  if classes[queue] then return classes[queue] end
  local found, first = {}, 0
  for prio = 3, 0, -1 do
    local bottom, wait_ms = (3 - prio) * STRIDE, max_waits['max_wait_ms:' .. prio]
    local size = call('ZCOUNT', queue_key(queue), format('%.0f', bottom), '(' .. format('%.0f', bottom + STRIDE))
    local aged = wait_ms > 0 and older(queue, first, size, now - wait_ms) or 0
    found[prio] = {first = first, size = size, wait_ms = wait_ms, aged = aged}
    first = first + size
  end
  classes[queue] = found
  return found
end

-- How many jobs may go before the one at `rank`, submitted then. Every TURNS-th claim goes to the most overdue of the
-- aged (claim.lua). So who is not aged may see some of lower classes pass, at most one a turn; and who is aged need not
-- wait for more turns than there are jobs as overdue. Without aged jobs it is the rank.
local function ahead_of(queue, rank, submitted)
  max_waits = max_waits or rare().published('max_wait_ms:0', 'max_wait_ms:1', 'max_wait_ms:2', 'max_wait_ms:3')
  local found, mine, passing = classes_of(queue, max_waits), 0, 0
  while mine < 3 and rank < found[mine].first do mine = mine + 1 end
  for prio = 0, mine - 1 do passing = passing + found[prio].aged end
  local me, before = found[mine], rank - found[mine].first + 1
  local is_aged = before <= me.aged
  if passing == 0 and not is_aged then return rank end
  local turn = tonumber(redis.pcall('HGET', p .. ':turns', queue) or nil) or 0
  local ahead = rank + math.min(passing, math.floor((rank + turn) / (TURNS - 1)))
  if not is_aged then return ahead end
  for prio, class in pairs(found) do
    local since_ms = submitted + me.wait_ms - class.wait_ms - (prio < mine and 1 or 0)
    if prio ~= mine then before = before + older(queue, class.first, class.aged, since_ms) end
  end
  return math.min(ahead, TURNS * before - turn - 1)
end

-- Where a job (state, tiers, submitted) will be served soonest: queue, ahead, p50, p90; -1 for NEVER. Among equals the
-- smallest `ahead`, then the router's order. '', 0, -1, -1 when it waits nowhere.
local function place(id, job)
  local leader = job.state == 'following' and redis.pcall('HGET', p .. ':flight:' .. (job.flight or ''), 'leader')
  if type(leader) == 'string' then
    id, job = leader, read(leader, {'state', 'tiers', 'submitted'}) or job
  end
  local queues = job.state == 'queued' and 'ingress' or job.state == 'ready' and job.tiers or ''
  local best, best_ahead, best_p50, best_p90 = '', 0, NEVER, NEVER
  for queue in string.gmatch(queues, '%S+') do
    local rank = call('ZRANK', queue_key(queue), id)
    if rank then
      local ahead = ahead_of(queue, rank, tonumber(job.submitted) or now)
      local p50, p90 = start_of(queue, ahead)
      if best == '' or p50 < best_p50
        or p50 == best_p50 and (p90 < best_p90 or p90 == best_p90 and ahead < best_ahead) then
        best, best_ahead, best_p50, best_p90 = queue, ahead, p50, p90
      end
    end
  end
  return best, best_ahead, best_p50 < NEVER and best_p50 or -1, best_p90 < NEVER and best_p90 or -1
end

