-- settle · bring jobs to their terminal state; who settles first decides
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap answer_ttl_ms max_answers max_answers_bytes, then for each job:
--       id token state(done|failed|cancelled|expired|dead) result answer_key answer labels text tokens
-- reply for each job: ok (this call ended it, or the same one before) | cancelled | expired | lost
--
-- A job that this call ends as done leaves its answer for recall.lua under p:answer:<answer_key>; an empty key: it does not.
-- text and how many tokens it has: an answer from a cache, for the readers of the stream; else empty.
-- labels: one JSON object with the texts tenant, muse, model and tags (separated by spaces), for forget.lua.

local WIDTH, HEAD = 9, 6
local FIELDS = {'state', 'token', 'attempt', 'crashes', 'tenant', 'bytes', 'idem', 'deadline', 'reply_to', 'queue',
                'prio', 'score', 'flight', 'stream', 'started', 'patient'}
local EVICTIONS = 50 -- of one call

local function check()
  for i = 1, HEAD do
    if not string.match(ARGV[i] or '', '^%d+$') then return invalid('arguments', 'one is no number', 'see settle.lua') end
  end
  if (#ARGV - HEAD) % WIDTH ~= 0 then return invalid('arguments', 'do not add up', 'see the head of settle.lua') end
  for a = HEAD, #ARGV - 1, WIDTH do
    if not terminal(ARGV[a + 3]) then return invalid('state', 'not terminal', 'give done, failed, cancelled, …') end
  end
end

local jobs = {} -- what is to be ended, by id

-- The verdict; what is `ok` and not ended before stands in `jobs` then.
local function look(id, token, state)
  local job = jobs[id] or read(id, FIELDS)
  if job and job.token == token and (job.ends or job.state) == state then return 'ok' end
  local holds, verdict = held(job, token)
  if holds and job.ends then return 'lost' end -- twice in one call: the first one counts
  if holds then jobs[id], job.ends = job, state end
  return verdict
end

local answers, sizes = p .. ':answers', p .. ':answers:bytes'

-- The least recently used go, first what has expired: those do not count any more.
local function make_room()
  for _ = 1, EVICTIONS do
    local oldest = redis.pcall('ZRANGE', answers, '0', '0')[1]
    if not oldest then return end
    local full = call('ZCARD', answers) > tonumber(ARGV[5])
      or (tonumber(redis.pcall('HGET', sizes, 'sum') or nil) or 0) > tonumber(ARGV[6])
    if not full and call('EXISTS', p .. ':answer:' .. oldest) == 1 then return end
    rare().forget(oldest)
  end
end

-- Before anything of this call is removed, so that a full memory refuses it: answers are not worth running over. Whatever
-- is in the way here, the job ends all the same.
local function remember(key, answer, labels)
  local old = tonumber(redis.pcall('HGET', sizes, key) or nil) or 0
  local bytes, kept = #key + #answer + #labels, p .. ':answer:' .. key
  if redis.pcall('TYPE', kept).ok ~= 'hash' then old = 0 end
  if type(redis.pcall('HSET', kept, 'value', answer, 'labels', labels)) == 'table' then return end -- an error
  for _, command in ipairs({
    {'PEXPIRE', kept, ARGV[4]}, {'ZADD', answers, now_text, key}, {'HSET', sizes, key, format('%d', bytes)},
    {'HINCRBY', sizes, 'sum', format('%d', bytes - old)}, {'PEXPIRE', answers, ARGV[4]}, {'PEXPIRE', sizes, ARGV[4]},
  }) do redis.pcall(unpack(command)) end
  make_room()
end

local mistake = check()
if mistake then return mistake end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
local reply = {}
local ids = {}
for a = HEAD, #ARGV - 1, WIDTH do
  reply[#reply + 1] = look(ARGV[a + 1], ARGV[a + 2], ARGV[a + 3])
  if jobs[ARGV[a + 1]] and not jobs[ARGV[a + 1]].result then
    jobs[ARGV[a + 1]].result, jobs[ARGV[a + 1]].at = ARGV[a + 4], a
    ids[#ids + 1] = ARGV[a + 1]
  end
end
for _, id in ipairs(ids) do
  local a = jobs[id].at
  if jobs[id].ends == 'done' and ARGV[a + 5] ~= '' then remember(ARGV[a + 5], ARGV[a + 6], ARGV[a + 7]) end
end
if #ids > 0 then call('ZREM', p .. ':leases', unpack(ids)) end
local move = moves()
for _, id in ipairs(ids) do
  local a = jobs[id].at
  if ARGV[a + 8] ~= '' then
    emit(id, jobs[id], 'kind', 'started', 'attempt', jobs[id].attempt)
    emit(id, jobs[id], 'kind', 'token', 'attempt', jobs[id].attempt, 'offset', '0', 'text', ARGV[a + 8], 'tokens', ARGV[a + 9])
  end
  move.finish(id, jobs[id], jobs[id].ends, jobs[id].result)
end
close()
return reply
