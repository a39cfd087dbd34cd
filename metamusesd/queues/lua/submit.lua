-- submit · put jobs into ingress, each with its own answer
--
-- KEYS  p
-- ARGV  for each job, at most BATCH:
--       id body digest priority(0…3) tenant deadline_ms(from now; 0: none) idempotency_key reply_to stream(0|1)
-- reply for each job: kind id detail retry_after_ms(0 unless full)
--       new       the job's id           queued
--       duplicate the answering job's id its state
--       full      the id                 jobs | bytes | tenant_jobs | class_jobs: which bound
--       conflict  the other job's id     id | idempotency_key: what names another body already
-- error INVALID field|problem|remedy: nothing was written
--
-- The bounds are those that a daemon has published with configure. retry_after_ms: when room is expected, at the rate at
-- which the live hosts start jobs.

local WIDTH = 9
local MAX_BODY, MAX_BOXES_CHARS = 4194304, 4096

local function check()
  if #ARGV == 0 or #ARGV % WIDTH ~= 0 or #ARGV > WIDTH * BATCH then
    return invalid('arguments', #ARGV .. ' given', 'give ' .. WIDTH .. ' for each job, and at most ' .. BATCH .. ' jobs')
  end
  for a = 0, #ARGV - 1, WIDTH do
    local deadline = tonumber(ARGV[a + 6])
    if #ARGV[a + 1] > 128 or not string.match(ARGV[a + 1], '^[%w_.:-]+$') then
      return invalid('id', 'not a name', 'use 1 to 128 of A-Z a-z 0-9 _ . : -')
    elseif #ARGV[a + 2] > MAX_BODY then
      return invalid('body', #ARGV[a + 2] .. ' bytes long', 'send at most ' .. MAX_BODY)
    elseif not string.match(ARGV[a + 4], '^[0-3]$') then
      return invalid('priority', 'not 0 to 3', 'give 0 (low) to 3 (critical)')
    elseif #ARGV[a + 5] > 64 or not string.match(ARGV[a + 5], '^[%w_.-]+$') then
      return invalid('tenant', 'not a name', 'use 1 to 64 of A-Z a-z 0-9 _ . -')
    elseif not string.match(ARGV[a + 6], '^%d+$') or deadline > 86400000 then
      return invalid('deadline_ms', 'not 0 to 86400000', 'give milliseconds from now')
    elseif #ARGV[a + 7] > 1024 then
      return invalid('idempotency_key', 'too long', 'give at most 1024 bytes')
    elseif #ARGV[a + 8] > 64 or not string.match(ARGV[a + 8], '^[%w_.-]*$') then
      return invalid('reply_to', 'not a name', 'use up to 64 of A-Z a-z 0-9 _ . -')
    elseif not string.match(ARGV[a + 9], '^[01]$') then
      return invalid('stream', 'not 0 or 1', 'give 1 for token events, 0 for none')
    end
  end
end

-- A repeated submit asks for mail as well: its mailbox joins those of the live job.
local function join(id, state, box)
  if box == '' or terminal(state) then return end
  local boxes = call('HGET', key_of(id), 'reply_to') or ''
  if string.find(' ' .. boxes .. ' ', ' ' .. box .. ' ', 1, true) or #boxes > MAX_BOXES_CHARS then return end
  call('HSET', key_of(id), 'reply_to', boxes == '' and box or boxes .. ' ' .. box)
end

-- The answer when the id or the idempotency key names a job already, else nil.
local function known(id, digest, idem_key, box)
  local other = idem_key and redis.pcall('GET', idem_key)
  if type(other) == 'string' then
    local other_digest, other_id = string.match(other, '^(.*) (%S+)$')
    local state = redis.pcall('HGET', key_of(other_id), 'state')
    if type(state) == 'string' then
      if other_digest ~= digest then return {'conflict', other_id, 'idempotency_key'} end
      join(other_id, state, box)
      return {'duplicate', other_id, state}
    end
  end
  local found = redis.pcall('HMGET', key_of(id), 'state', 'digest')
  if found.err then return {'conflict', id, 'id'} end -- the key is somebody else's, and of another type
  if not found[1] then return nil end
  if found[2] ~= digest then return {'conflict', id, 'id'} end
  join(id, found[1], box)
  return {'duplicate', id, found[1]}
end

local sequence -- drawn once a call
local limits = {} -- by priority: max_jobs, max_bytes, max_tenant_jobs, max_queue_size; read once a call

-- Numbers for all jobs of the call are drawn at once; those that are not used leave a gap.
local function next_number()
  local most = #ARGV / WIDTH
  sequence = (sequence or call('INCRBY', p .. ':seq', format('%d', most)) - most) + 1
  return sequence
end

local function later(jobs)
  local rates = rare()
  return rates.room_after_ms(jobs, rates.published('drain_milli_hz').drain_milli_hz)
end

-- The bound that is reached, and the jobs that it counts.
local function bound_reached(tenant, prio, bytes)
  local mine, class = counting().know(tenant, prio)
  limits[prio] = limits[prio]
    or redis.pcall('HMGET', p .. ':limits', 'max_jobs', 'max_bytes', 'max_tenant_jobs', 'max_queue_size:' .. prio)
  local sums, most, most_bytes, tenant_most, class_most = counts.sums, unpack(limits[prio], 1, 4)
  most, most_bytes = tonumber(most or nil) or 100000, tonumber(most_bytes or nil) or 1073741824
  tenant_most, class_most = tonumber(tenant_most or nil) or 50000, tonumber(class_most or nil) or 0
  if sums.jobs >= most then return 'jobs', most end
  if sums.bytes + bytes > most_bytes then return 'bytes', sums.jobs end
  if sums[mine] >= tenant_most then return 'tenant_jobs', tenant_most end
  if class_most > 0 and sums[class] >= class_most then return 'class_jobs', class_most end
end

local function accept(id, body, digest, prio, tenant, deadline_ms, idem, box, stream)
  local idem_key = idem ~= '' and p .. ':idem:' .. tenant .. ':' .. idem
  local answer = known(id, digest, idem_key, box)
  if answer then return answer end
  local bound, jobs = bound_reached(tenant, prio, #body)
  if bound then return {'full', id, bound, later(jobs)} end
  local score = format('%.0f', (3 - prio) * STRIDE + next_number())
  -- The queue first: where an ACL or a foreign key stops this script half-way, an id without a job is cleared away,
  -- while a job that stands in no queue would be lost, and its repetition answered `duplicate`.
  call('ZADD', p .. ':ingress', score, id)
  call('HSET', key_of(id), 'state', 'queued', 'body', body, 'digest', digest, 'prio', prio, 'score', score,
       'tenant', tenant, 'bytes', format('%d', #body), 'reply_to', box, 'stream', stream, 'submitted', now_text,
       'attempt', '1', 'crashes', '0', 'queue', 'ingress')
  if deadline_ms ~= '0' then
    call('HSET', key_of(id), 'deadline', now + deadline_ms)
    call('ZADD', p .. ':deadlines', now + deadline_ms, id)
  end
  if idem_key then
    call('HSET', key_of(id), 'idem', idem)
    call('SET', idem_key, digest .. ' ' .. id)
  end
  counts.count(id, {tenant = tenant, prio = prio, bytes = #body, score = score}, 1)
  return {'new', id, 'queued'}
end

local mistake = check()
if mistake then return mistake end
local reply, fresh = {}, false
for a = 0, #ARGV - 1, WIDTH do
  local answer = accept(unpack(ARGV, a + 1, a + WIDTH))
  fresh = fresh or answer[1] == 'new'
  for i = 1, 3 do reply[#reply + 1] = answer[i] end
  reply[#reply + 1] = answer[4] or '0'
end
close()
if fresh then arm('ingress') end
return reply
