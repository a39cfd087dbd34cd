-- recount · count the live jobs anew, so that a mistake in the counters does not stay; put back what stands nowhere
--
-- KEYS  p
-- ARGV  interval_ms chunk
-- reply 0 not due | 1 `chunk` jobs more were counted | 2 all were counted: the counters are right now
--
-- Not more often than once in interval_ms, for all callers together. Few jobs are counted in one call. Of more, each call
-- counts the next `chunk`, in the order of their sequence numbers, into p:recount; a job that ends (or comes back to life)
-- with a number that was passed already is taken from there (or put there) by `counting`, so that the sum is exact when
-- the last one is passed. An entry of p:live without a live job behind it is a mistake as well, and goes.
--
-- A live job that stands in no queue and under no lease was left there by a script that something stopped half-way: an ACL
-- that changed, a key that somebody else wrote. It goes where its state says; one that ran gets a lease that is over.

local interval_ms, chunk = tonumber(ARGV[1]), tonumber(ARGV[2])
local KEEP_MS = '60000' -- a recount that nobody goes on with is forgotten
local FIELDS = {'state', 'tenant', 'prio', 'bytes', 'score', 'tiers', 'flight'}
local live, part, whole = p .. ':live', p .. ':recount', p .. ':counters'

if not (interval_ms and interval_ms > 0 and chunk and chunk > 0) then
  return invalid('arguments', 'do not add up', 'give interval_ms chunk')
end
call('ZREM', live, '') -- a removal first: what follows it is allowed when memory is full
local from = call('EXISTS', part) == 1 and call('HGET', whole, 'cursor')
if not from then
  if not call('SET', p .. ':recounted', '1', 'NX', 'PX', ARGV[1]) then return 0 end
  call('DEL', part)
  from = '0'
end

-- Where a job must stand, by its state.
local function places_of(job)
  if job.state == 'running' then return {p .. ':leases'} end
  if job.state == 'delayed' then return {p .. ':delayed'} end
  if job.state == 'queued' then return {p .. ':ingress'} end
  if job.state == 'following' then return {} end
  local places = {}
  for tier in string.gmatch(job.tiers, '%S+') do places[#places + 1] = queue_key(tier) end
  return places
end

local expected, jobs = {}, {} -- ids by place; what was read

-- A job that follows must be known to its flight, and the flight led by a live job; else it goes its own way.
local function set_free(id, job)
  local key = p .. ':flight:' .. job.flight
  local found = redis.pcall('HMGET', key, 'leader', 'f:' .. id)
  local leader = found[1] and read(found[1], {'state', 'flight'})
  if leader and found[2] and leader.flight == job.flight and leader.state ~= 'following' and not terminal(leader.state) then
    return
  end
  redis.pcall('HDEL', key, 'f:' .. id)
  call('HSET', key_of(id), 'flight', '')
  moves().put_back(id, job)
end

local function expect(id, job)
  jobs[id] = job
  if job.state == 'following' then set_free(id, job) end
  for _, place in ipairs(places_of(job)) do
    local ids = expected[place] or {}
    ids[#ids + 1], expected[place] = id, ids
  end
end

local function set_right(place, id)
  local job = jobs[id]
  if job.state == 'running' or job.state == 'delayed' then call('ZADD', place, now, id) else moves().put_back(id, job) end
end

local function look_for_lost()
  for place, ids in pairs(expected) do
    for first = 1, #ids, BATCH do
      local scores = redis.pcall('ZMSCORE', place, unpack(ids, first, math.min(first + BATCH - 1, #ids)))
      for i = 1, scores.err and 0 or #scores do -- a place of a wrong type says nothing
        if not scores[i] then set_right(place, ids[first + i - 1]) end
      end
    end
  end
end

-- An ended job that is still counted: what is to expire may not have been told so.
local function let_go(id)
  call('ZREM', live, id)
  for _, key in ipairs({key_of(id), p .. ':events:' .. id}) do
    if call('PTTL', key) == -1 then call('PEXPIRE', key, DEAD_TTL_MS) end
  end
end

local function count(sums, job)
  local mine, class = 'jobs:' .. job.tenant, 'jobs:class:' .. job.prio
  sums.jobs, sums.bytes = (sums.jobs or 0) + 1, (sums.bytes or 0) + (tonumber(job.bytes) or 0)
  sums[mine], sums[class] = (sums[mine] or 0) + 1, (sums[class] or 0) + 1
end

local entries = call('ZRANGEBYSCORE', live, '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local sums = {}
for i = 1, #entries, 2 do
  local job = read(entries[i], FIELDS)
  if job and not terminal(job.state) then
    count(sums, job)
    expect(entries[i], job)
  else
    let_go(entries[i])
  end
end
look_for_lost()
close()
if #entries == 2 * chunk then
  for field, sum in pairs(sums) do call('HINCRBY', part, field, sum) end
  call('HSET', whole, 'cursor', format('%.0f', entries[#entries]))
  call('PEXPIRE', part, KEEP_MS)
  return 1
end

local before = call('HGETALL', part)
for i = 1, #before, 2 do
  sums[before[i]] = (sums[before[i]] or 0) + before[i + 1]
end
call('DEL', whole, part)
if (sums.jobs or 0) > 0 then
  for field, sum in pairs(sums) do
    if sum > 0 then call('HSET', whole, field, format('%.0f', sum)) end
  end
end
return 2
