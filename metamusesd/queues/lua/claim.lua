-- claim · move routed jobs to ready, then take jobs from the heads of queues under a lease
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap owner nonce lease_ms max_waits(ms, of four classes: "low,normal,high,critical";
--       0: never) n_wants
--       n_wants times: queue(ingress or a tier) count floor(lowest priority to take)
--       then for each routed job: id token tiers(separated by spaces) route flight
-- reply for each job taken: id token queue priority attempt crashes body route tenant stream submitted deadline claimed
--       retries aged(0|1)
--
-- The i-th job gets the token `<nonce>:<i>`. A job is taken out of all its queues at once. The same owner and nonce again
-- get the same jobs again; so an owner has one claim under way at a time. Routed jobs whose token is old are left alone.
-- A routed job with a `flight` (a digest, or empty) whose flight is led by another live job follows that one from now on,
-- and the leader gets the higher class of the two; else it leads the flight. One flight has at most MOST_FOLLOWERS.
-- A count of 0 takes nothing; it arms the queue's marker again if jobs wait there, for a host that has room.
--
-- Starvation: a job is aged when it has waited longer, since `submitted`, than its class' max_wait. A claim that takes all
-- that waits needs no rule. Of the other claims from a queue with floor 0 every eighth is a turn of the aged: the most
-- overdue of them is taken, whatever its class (`aged` = 1); if there is none, the turn is used as any other. So
--    * of such claims in a row, at most one in eight is an aged job's, and
--    * an aged job is taken after at most 8·k of them, where k counts the aged jobs that are taken as more overdue, itself
--      included.
-- Inside a class only its head is looked at, which has waited longest; a turn costs two commands a class with a limit.

local HEAD, ROUTED, SKIPS = 8, 5, 200 -- SKIPS: dead or expired entries that one call clears away from the head of a queue
local CLOCK_MS = 1000 -- submitted later than this from now: before the clock was put back, so it has waited longest
local REPEAT_MS = 3600000 -- how long a claim may be repeated: Redis may be away for longer than a lease
local FIELDS = {'state', 'token', 'prio', 'score', 'attempt', 'crashes', 'tenant', 'deadline', 'reply_to', 'stream',
                'queue', 'tiers', 'started', 'body', 'route', 'submitted', 'claimed', 'retries', 'flight', 'patient'}
local LEADING = {queued = true, ready = true, running = true} -- a retry is waited for by nobody else
local MOST_FOLLOWERS, FLIGHT_TTL_MS = 256, '86400000'
local owner, nonce, lease_ms, n_wants = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[8])
local reply, taken_ids, fetched, aged, lease_end = {}, {}, {}, {}, nil

local function check()
  if not (tonumber(ARGV[1]) and tonumber(ARGV[2]) and tonumber(ARGV[3]) and lease_ms and n_wants)
    or #ARGV < HEAD + 3 * n_wants or (#ARGV - HEAD - 3 * n_wants) % ROUTED ~= 0 or #ARGV > HEAD + 3 * n_wants + ROUTED * BATCH then
    return invalid('arguments', 'do not add up', 'see the head of claim.lua')
  elseif not string.find(ARGV[7], '^%d+,%d+,%d+,%d+$') then
    return invalid('max_waits', 'not four numbers', 'give low,normal,high,critical in ms')
  elseif not string.match(owner .. nonce, '^[%w_.:-]+$') or nonce == '' then
    return invalid('owner', 'not a name', 'use A-Z a-z 0-9 _ . : -')
  end
  for a = HEAD, HEAD + 3 * n_wants - 1, 3 do
    if not (string.match(ARGV[a + 2], '^%d+$') and string.match(ARGV[a + 3], '^[0-3]$')) or tonumber(ARGV[a + 2]) > BATCH
    then return invalid('wants', 'count or floor out of range', 'give a count up to ' .. BATCH .. ' and a floor 0 to 3') end
  end
end

-- The job, read once a call: one that was routed here is often the one that is taken.
local function fetch(id)
  if fetched[id] == nil then fetched[id] = read(id, FIELDS) or false end
  return fetched[id]
end

local function report(id, job)
  local n = #reply
  reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = id, job.token, job.queue, job.prio
  reply[n + 5], reply[n + 6], reply[n + 7] = job.attempt, job.crashes, job.body
  reply[n + 8], reply[n + 9], reply[n + 10] = job.queue ~= 'ingress' and job.route or '', job.tenant, job.stream
  reply[n + 11], reply[n + 12], reply[n + 13] = job.submitted, job.deadline, job.claimed
  reply[n + 14], reply[n + 15] = job.retries, aged[id] and '1' or '0'
end

local function repeated()
  local last = call('GET', p .. ':claimed:' .. owner)
  if not last or string.sub(last, 1, #nonce + 1) ~= nonce .. ' ' then return false end
  local i = 0
  for mark, id in string.gmatch(string.sub(last, #nonce + 2), '(%+?)(%S+)') do
    i = i + 1
    aged[id] = mark == '+'
    local job = fetch(id)
    if job and job.state == 'running' and job.token == nonce .. ':' .. i then
      call('ZREM', p .. ':leases', id) -- a removal first: allowed when memory is full, and so is what follows
      call('ZADD', p .. ':leases', lease_end, id) -- Redis may have been away for longer than the lease
      report(id, job)
    end
  end
  return true
end

-- The leader gets a higher class, and no class time-out any more: it has neither class' patience. `routed`: it was routed
-- in this call, and stands nowhere yet.
local function raise(id, job, prio, routed)
  local whole = routed and read(id) or job
  local score = format('%.0f', (3 - prio) * STRIDE + score_of(whole) % STRIDE)
  counting().count(id, whole, -1)
  whole.prio, whole.score, job.prio, job.score = prio, score, prio, score
  counting().count(id, whole, 1)
  if not routed and (job.state == 'ready' or job.state == 'queued') then
    moves().take_out(id, job)
    moves().put_back(id, job, 'prio', prio, 'score', score, 'patient', '1')
  elseif job.state == 'running' and not routed then
    call('HSET', key_of(id), 'prio', prio, 'score', score, 'patient', '1', 'raised', '1') -- its holder hears of it from append
    if job.owner ~= '' then arm('cancels:' .. job.owner) end
  else
    call('HSET', key_of(id), 'prio', prio, 'score', score, 'patient', '1')
  end
  if not routed then fetched[id] = nil end
end

-- The job is of this flight from now on, and of no other.
local function change(id, job, flight)
  if job.flight == flight then return end
  if job.flight ~= '' then flights().ended(id, job, 'left') end
  job.flight = flight
  call('HSET', key_of(id), 'flight', flight)
end

-- Whether the job follows another one of its flight from now on.
local function follows(id, job, flight)
  if flight == '' then return false end
  local key = p .. ':flight:' .. flight
  local leader = redis.pcall('HGET', key, 'leader')
  if leader == id or type(leader) == 'table' then return false end -- a table: an error, the key is of a wrong type
  local routed = leader and fetched[leader] and fetched[leader].routed
  local other = routed and fetched[leader] or leader and read(leader)
  if not other or other.flight ~= flight or not LEADING[other.state] then
    call('HDEL', key, 'f:' .. id)
    call('HSET', key, 'leader', id)
    call('PEXPIRE', key, FLIGHT_TTL_MS) -- recount.lua frees who follows what has vanished
    return false
  elseif other.tenant ~= job.tenant then
    return false -- the digest holds the tenant: whoever gave this one did not make it as we do
  elseif call('HLEN', key) > MOST_FOLLOWERS then
    job.flight = ''
    call('HSET', key_of(id), 'flight', '')
    return false
  end
  call('HSET', key, 'f:' .. id, score_of(job))
  call('PEXPIRE', key, FLIGHT_TTL_MS)
  call('HSET', key_of(id), 'state', 'following') -- at once: its leader may leave in this very call
  if tonumber(job.prio) > tonumber(other.prio) then raise(leader, other, job.prio, routed) end
  return true
end

-- Moves what was routed, with one command a queue for all jobs: first out of the leases, then into their tiers.
local function route()
  local ids, entries = {}, {}
  for a = HEAD + 3 * n_wants, #ARGV - 1, ROUTED do
    local id, job = ARGV[a + 1], fetch(ARGV[a + 1])
    if held(job, ARGV[a + 2]) and string.match(ARGV[a + 3], '%S') then
      job.state, job.token, job.tiers, job.route, job.joins = 'ready', '', ARGV[a + 3], ARGV[a + 4], ARGV[a + 5]
      job.routed = true
      ids[#ids + 1] = id
    end
  end
  if #ids == 0 then return end
  call('ZREM', p .. ':leases', unpack(ids))
  for _, id in ipairs(ids) do change(id, fetched[id], fetched[id].joins) end -- who leaves hands over first
  for _, id in ipairs(ids) do
    if follows(id, fetched[id], fetched[id].joins) then fetched[id].state = 'following' end
  end
  for _, id in ipairs(ids) do
    local job = fetched[id]
    call('HSET', key_of(id), 'state', job.state, 'token', '', 'owner', '', 'tiers', job.tiers, 'route', job.route)
    for tier in string.gmatch(job.state == 'ready' and job.tiers or '', '%S+') do
      local waiting = entries[tier] or {}
      waiting[#waiting + 1], waiting[#waiting + 2] = score_of(job), id
      entries[tier], touched[tier] = waiting, true
    end
  end
  for tier, waiting in pairs(entries) do call('ZADD', queue_key(tier), unpack(waiting)) end
end

local function take(id, job, queue)
  if queue ~= 'ingress' and job.tiers ~= queue then -- it stands in other tiers, too
    for tier in string.gmatch(job.tiers, '%S+') do call('ZREM', queue_key(tier), id) end
  end
  taken_ids[#taken_ids + 1] = aged[id] and '+' .. id or id
  job.state, job.token, job.queue, job.claimed = 'running', nonce .. ':' .. #taken_ids, queue, now_text
  local starts = queue ~= 'ingress' and job.started ~= '1'
  call('HSET', key_of(id), 'state', 'running', 'token', job.token, 'owner', owner, 'queue', queue, 'claimed',
       now_text, 'started', starts and '1' or job.started)
  if starts then emit(id, job, 'kind', 'started', 'attempt', job.attempt) end
  report(id, job)
end

-- The same number of ids as in `ids`, the head of the queue, but with the aged in their turns. Entries that nobody can
-- claim any more may come besides: they leave the queue with the others, and hide nobody.
local function take_turns(queue, ids, turn)
  local order, chosen, heads, at, max_waits = {}, {}, {}, 1, {}
  for wait_ms in string.gmatch(ARGV[7], '%d+') do max_waits[#max_waits + 1] = tonumber(wait_ms) end -- low class first
  local expected = queue == 'ingress' and 'queued' or 'ready'

  -- Moves `head` on to the first job of class `prio` that is not chosen yet; no id: there is none.
  local function move_on(prio, head)
    local bottom, top = format('%.0f', (3 - prio) * STRIDE), '(' .. format('%.0f', (4 - prio) * STRIDE)
    for _ = 1, SKIPS do
      local id = call('ZRANGEBYSCORE', queue_key(queue), bottom, top, 'LIMIT', head.at, 1)[1]
      head.id, head.at = id, head.at + 1
      local job = id and not chosen[id] and read(id, {'state', 'deadline', 'submitted'})
      if not id or job and job.state == expected and not overdue(job) then
        head.since = job and (tonumber(job.submitted) or now)
        if job and head.since > now + CLOCK_MS then head.since = 0 end
        return
      elseif not chosen[id] then
        order[#order + 1], chosen[id] = id, true
      end
    end
    head.id = nil
  end

  local function most_overdue()
    local best, longest = nil, -1
    for prio = 3, 0, -1 do
      local max_wait = max_waits[prio + 1]
      if max_wait > 0 then
        local head = heads[prio] or {at = 0}
        if head.at == 0 or head.id and chosen[head.id] then move_on(prio, head) end
        heads[prio] = head
        local over = head.id and now - head.since - max_wait or -1
        if over > longest then best, longest = head.id, over end
      end
    end
    return best
  end

  if not most_overdue() then return ids end -- nobody is aged: whoever stands behind a head has waited for less long
  for n = 1, #ids do
    local id = (turn + n) % TURNS == 0 and most_overdue()
    if id then
      aged[id] = true
    else
      while chosen[ids[at]] do at = at + 1 end
      id = ids[at]
    end
    if not id then break end
    order[#order + 1], chosen[id] = id, true
  end
  return order
end

-- Takes up to `count` from the head; true when it left some that it might take.
local function take_from(queue, count, floor)
  local key, top = queue_key(queue), floor == 0 and '+inf' or '(' .. format('%.0f', (4 - floor) * STRIDE)
  local expected, skips = queue == 'ingress' and 'queued' or 'ready', SKIPS
  while count > 0 and skips > 0 do
    local ids, turn = call('ZRANGEBYSCORE', key, '-inf', top, 'LIMIT', '0', format('%d', count + 1)), nil
    if #ids == 0 then return false end
    local all = #ids <= count
    if not all then
      ids[#ids] = nil
      if floor == 0 and ARGV[7] ~= '0,0,0,0' then
        turn = tonumber(redis.pcall('HGET', p .. ':turns', queue) or nil) or 0
        if turn + #ids >= TURNS then ids = take_turns(queue, ids, turn) end
      end
    end
    call('ZREM', key, unpack(ids)) -- they all leave it, in one way or another
    if turn then call('HSET', p .. ':turns', queue, (turn + #ids) % TURNS) end
    local leases = {}
    for _, id in ipairs(ids) do
      local job = fetch(id)
      if not job or job.state ~= expected then
        skips = skips - 1
      elseif overdue(job) then
        moves().expire(id, read(id))
        skips = skips - 1
      else
        take(id, job, queue)
        leases[#leases + 1], leases[#leases + 2] = lease_end, id
        count = count - 1
      end
    end
    if #leases > 0 then call('ZADD', p .. ':leases', unpack(leases)) end
    if all then return false end
  end
  return true
end

local mistake = check()
if mistake then return mistake end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
lease_end = format('%.0f', now + lease_ms)
if repeated() then return reply end
local emptied = {} -- markers of queues in which nothing is left
route()
for a = HEAD, HEAD + 3 * n_wants - 1, 3 do
  local queue, count, floor = ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  local more = count > 0 and take_from(queue, count, floor)
  if more or count == 0 then
    touched[queue] = true
  elseif floor == 0 and call('EXISTS', queue_key(queue)) == 0 then -- above a floor nobody knows, and re-arming would spin
    emptied[#emptied + 1] = p .. ':marker:' .. queue
    touched[queue] = nil
  end
end
if emptied[1] then call('DEL', unpack(emptied)) end
if #taken_ids > 0 then
  call('SET', p .. ':claimed:' .. owner, nonce .. ' ' .. table.concat(taken_ids, ' '), 'PX', REPEAT_MS)
end
close()
return reply
