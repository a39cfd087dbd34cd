-- common.lua · what the scripts share · protocol 3
--
-- The text of script X is this file followed by X.lua:   SCRIPT LOAD "$(cat common.lua submit.lua)"
-- Only position and push take place.lua between the two.
--
-- KEYS[1] = p, the prefix with its hash tag, `{metamuse}` by default. Every other key is made from it in here, so that a
-- queue lives in one Cluster slot. Keys are private to the scripts; docs/redis-protocol.md says which may be read.
--
--   p:ingress, p:ready:<tier>   zset    id → score = (3 - priority)·2^44 + sequence
--   p:leases                    zset    id → lease end        p:deadlines, p:delayed   zset    id → due time
--   p:job:<id>                  hash    see `read`; and body, route, digest, claimed, reason, ended, evidence, told
--   p:events:<id>, p:mail:<box> stream  kind attempt [offset text tokens] [data]; in a mailbox `id` comes first
--   p:result:<id>               string  result JSON           p:idem:<tenant>:<key>    string  "<digest> <id>"
--   p:flight:<digest>           hash    equal jobs that are computed once: see `flights`
--   p:answer:<digest>           hash    value, labels: an answer that may be given again, see recall.lua
--   p:answers                   zset    digest → last use     p:answers:bytes   hash   digest → bytes, and `sum`
--   p:asked:<digest>            string  id: a user has asked this a moment ago
--   p:complaints                list    "<entry> <score>": hits that were reported as wrong, see complain.lua
--   p:live                      zset    id → sequence: the jobs that are not terminal
--   p:counters                  hash    jobs, bytes, jobs:<tenant>, jobs:class:<prio>: how many those are
--                                       and `cursor` while recount.lua is under way
--   p:recount                   hash    the same of the jobs up to the sequence `cursor`, see recount.lua
--   p:turns                     hash    queue → claims since the last turn of an aged job, see claim.lua
--   p:unserved                  hash    tier → since when no live host serves it, see reap.lua
--   p:limits                    hash    what configure wrote, and what all live hosts start in 1000 s: drain_milli_hz
--   p:marker:<queue>            list    at most one element: wake up and claim
--   p:marker:cancels:<owner>    list    the same: a job that it runs was cancelled, see cancel.lua
--   p:claimed:<owner>           string  "<nonce> <id> <id>…": the last claim, for a repeat after a lost reply
--   p:pushed:<tier>             string  somebody has pushed   p:dropped:<id>           string  a drop to repeat
--   p:seq, p:protocol  string    p:dead  zset    p:hosts  zset    p:host:<owner>  hash    p:notifications:<queue>  channel
--
-- All times are milliseconds of this server's clock. Numbers that may pass 2^46 are printed with '%.0f', counts with
-- '%d', which is cheaper, but ends at 2^31 on some machines. What goes to Redis once a job is a string: a Lua number
-- is printed at every call, which takes as long as a small command.

local STRIDE = 2 ^ 44
local BATCH = 1000 -- ids in one unpack; Lua's own stack ends near 8000
local DEAD_CAP, DEAD_TTL_MS = 10000, 86400000
local MARKER_TTL_MS = '60000'
local NEVER, TURNS = math.huge, 8 -- TURNS: one in so many claims is a turn of the aged, see claim.lua
local result_ttl_ms, stream_cap, mail_cap -- set by the scripts that write events, from their first three arguments
local mailed, touched, counts = nil, {}, nil -- mailboxes, queues and counters that this call changed: see `close`

local clock = redis.call('TIME')
local now_text = clock[1] .. string.sub('00000' .. clock[2], -6, -4) -- seconds and microseconds
local now = tonumber(now_text)

-- Making a function costs time at every call of every script, the more the more locals it shares with others and the
-- earlier these stand. What only some scripts need is made on demand: by `counting`, `moves` and `rare`.
local p, call, format = KEYS[1], redis.call, string.format

local function invalid(field, problem, remedy) return {err = 'INVALID ' .. field .. '|' .. problem .. '|' .. remedy} end
local function key_of(id) return p .. ':job:' .. id end
local function queue_key(queue) return queue == 'ingress' and p .. ':ingress' or p .. ':ready:' .. queue end

local function terminal(state)
  return state == 'done' or state == 'failed' or state == 'cancelled' or state == 'expired' or state == 'dead'
end

-- What a hash need not hold; and what takes the place of a field that somebody spoilt: it must not stop the other jobs.
local function default_of(name)
  local zero = name == 'deadline' or name == 'started' or name == 'written' or name == 'retries' or name == 'claimed'
  if zero then return '0' elseif name == 'prio' or name == 'stream' or name == 'attempt' then return '1' end
  return name == 'tenant' and 'default' or name == 'queue' and 'ingress' or ''
end

-- The job's fields by name (strings), or nil when there is no such job. `names`: only these, `state` first.
local function read(id, names)
  names = names or {'state', 'token', 'prio', 'score', 'attempt', 'crashes', 'tenant', 'bytes', 'idem', 'deadline',
                    'reply_to', 'stream', 'queue', 'tiers', 'started', 'written', 'owner', 'back', 'retries',
                    'submitted', 'flight', 'patient'}
  local values, job = redis.pcall('HMGET', key_of(id), unpack(names)), {} -- an error: the key is of a wrong type
  if not values[1] then return nil end
  for i = 1, #names do job[names[i]] = values[i] or default_of(names[i]) end
  if job.attempt and job.attempt ~= '1' and not string.match(job.attempt, '^%d+$') then job.attempt = '1' end
  return job
end

-- Whether `token` still holds the job; if not, the verdict that its bearer gets.
local function held(job, token)
  if not job then return false, 'lost' end
  if job.token ~= token or token == '' then return false, 'lost' end
  if job.state == 'running' then return true, 'ok' end
  if job.state == 'cancelled' or job.state == 'expired' then return false, job.state end
  return false, 'lost'
end

local function overdue(job) return job.deadline ~= '0' and (tonumber(job.deadline) or NEVER) <= now end
local function score_of(job) return string.match(job.score, '^%d+$') or format('%.0f', 2 * STRIDE) end

local function set_bounds(ttl_s, stream, mail)
  result_ttl_ms, stream_cap, mail_cap = format('%d', ttl_s * 1000), stream, mail
end

-- One entry to every mailbox of the job.
local function send_mail(id, job, ...)
  if job.reply_to == '' then return end
  for box in string.gmatch(job.reply_to, '%S+') do
    local key = p .. ':mail:' .. box
    redis.pcall('XADD', key, 'MAXLEN', '~', mail_cap, '*', 'id', id, ...) -- a mailbox of a wrong type gets none
    mailed = mailed or {}
    mailed[key] = true
  end
end

-- One entry to the job's own stream and its mailboxes, if it wants events before its end.
local function emit(id, job, ...)
  if job.stream ~= '1' then return end
  redis.pcall('XADD', p .. ':events:' .. id, 'MAXLEN', '~', stream_cap, '*', ...)
  send_mail(id, job, ...)
end

-- What this call owes to the counters. Made on demand: know, count, write, and the counters as this call has them (sums).
local function counting()
  if counts then return counts end
  -- born: sequence, id … of new ones; gone: ids. A recount is at `cursor`, or -1; `passed`: what changed before it.
  local sums, born, gone, changed, cursor, passed = {}, {}, {}, false, nil, nil

  -- Reads the counters of a tenant and a class, once a call. The names of the two.
  local function know(tenant, prio)
    local mine, class = 'jobs:' .. tenant, 'jobs:class:' .. prio
    if not (sums[mine] and sums[class]) then
      local found = redis.pcall('HMGET', p .. ':counters', 'cursor', 'jobs', 'bytes', mine, class)
      if found.err then call('DEL', p .. ':counters') end -- somebody else's: recount makes them anew
      cursor = cursor or tonumber(found[1] or nil) or -1
      sums.jobs = sums.jobs or tonumber(found[2] or nil) or 0
      sums.bytes = sums.bytes or tonumber(found[3] or nil) or 0
      sums[mine] = sums[mine] or tonumber(found[4] or nil) or 0
      sums[class] = sums[class] or tonumber(found[5] or nil) or 0
    end
    return mine, class
  end

  -- A job became live (by = 1), or ended (-1): needs its tenant, prio, bytes and score.
  local function count(id, job, by)
    local mine, class = know(job.tenant, job.prio)
    local sequence, bytes = score_of(job) % STRIDE, by * (tonumber(job.bytes) or 0)
    sums.jobs, sums.bytes, sums[mine], sums[class] = sums.jobs + by, sums.bytes + bytes, sums[mine] + by, sums[class] + by
    changed = true
    if by > 0 then
      born[#born + 1], born[#born + 2] = format('%.0f', sequence), id
    else
      gone[#gone + 1] = id
    end
    if sequence <= cursor then
      passed = passed or {}
      for field, number in pairs({jobs = by, bytes = bytes, [mine] = by, [class] = by}) do
        passed[field] = (passed[field] or 0) + number
      end
    end
  end

  local function write()
    if not changed then return end
    local key, part, kept = p .. ':counters', p .. ':recount', {}
    for i = 1, #gone, BATCH do call('ZREM', p .. ':live', unpack(gone, i, math.min(i + BATCH - 1, #gone))) end
    for i = 1, #born, BATCH do call('ZADD', p .. ':live', unpack(born, i, math.min(i + BATCH - 1, #born))) end
    if sums.jobs <= 0 then
      call('DEL', key) -- no job is live: whatever else stands there is a mistake
    else
      for field, number in pairs(sums) do
        if number <= 0 then call('HDEL', key, field) else kept[#kept + 1], kept[#kept + 2] = field, format('%d', number) end
      end
      call('HSET', key, unpack(kept))
    end
    if passed and call('EXISTS', part) == 1 then
      for field, by in pairs(passed) do call('HINCRBY', part, field, by) end
    end
  end

  counts = {sums = sums, know = know, count = count, write = write}
  return counts
end

-- Wakes one dispatcher that waits for `queue`. A hint: it expires, and losing it, to full memory or a foreign key, costs
-- one poll interval.
local function arm(queue)
  local key = p .. ':marker:' .. queue
  local length = redis.pcall('LPUSH', key, '1')
  if length == 1 then call('PEXPIRE', key, MARKER_TTL_MS) else redis.pcall('LTRIM', key, '0', '0') end
end

-- Writes what the call gathered. Every script that changes jobs ends with it.
local function close()
  if counts then counts.write() end
  if mailed then
    for key in pairs(mailed) do call('PEXPIRE', key, result_ttl_ms) end
  end
  for queue in pairs(touched) do
    if call('EXISTS', queue_key(queue)) == 1 then arm(queue) else call('DEL', p .. ':marker:' .. queue) end
  end
end

local flights -- see below

-- How a job leaves the place where it stands. Made on demand: take_out, put_back, finish, failure, expire, bury, give_back.
local function moves()
  -- Removes a live job from wherever it stands. A removal is allowed when memory is full, and so is what follows it.
  local function take_out(id, job)
    if job.state == 'ready' then
      for tier in string.gmatch(job.tiers, '%S+') do call('ZREM', p .. ':ready:' .. tier, id) end
    elseif job.state == 'following' then
      redis.pcall('HDEL', p .. ':flight:' .. job.flight, 'f:' .. id) -- an error: somebody else's key
    else
      local place = job.state == 'running' and ':leases' or job.state == 'delayed' and ':delayed' or ':ingress'
      call('ZREM', p .. place, id)
    end
  end

  -- Puts a job that stands nowhere into its queues, with its old score: ready when it was routed, else ingress. More
  -- fields and values may follow, for its hash.
  local function put_back(id, job, ...)
    local state, tiers = 'ready', job.tiers
    if tiers == '' then state, tiers = 'queued', 'ingress' end
    job.state, job.token = state, ''
    call('HSET', key_of(id), 'state', state, 'token', '', 'owner', '', ...)
    for queue in string.gmatch(tiers, '%S+') do
      call('ZADD', queue_key(queue), score_of(job), id)
      touched[queue] = true
    end
  end

  -- Brings a job that stands nowhere to its one terminal state: result, events, notice, and from here on a TTL. The result
  -- comes before the state: whoever is stopped between them, by an ACL say, is not taken for done, and does it again.
  local function finish(id, job, state, result)
    local key, ttl_ms = key_of(id), state == 'dead' and DEAD_TTL_MS or result_ttl_ms
    call('SET', p .. ':result:' .. id, result, 'PX', ttl_ms)
    if state == 'dead' then
      call('HSET', key, 'state', state, 'ended', now_text)
    else
      call('HSET', key, 'state', state, 'ended', now_text, 'body', '')
    end
    call('PEXPIRE', key, ttl_ms)
    redis.pcall('XADD', p .. ':events:' .. id, 'MAXLEN', '~', stream_cap, '*', 'kind', state, 'attempt', job.attempt)
    call('PEXPIRE', p .. ':events:' .. id, ttl_ms)
    send_mail(id, job, 'kind', state, 'attempt', job.attempt, 'data', result)
    if job.deadline ~= '0' then call('ZREM', p .. ':deadlines', id) end
    if job.idem ~= '' then call('PEXPIRE', p .. ':idem:' .. job.tenant .. ':' .. job.idem, ttl_ms) end
    redis.pcall('PUBLISH', p .. ':notifications:' .. job.queue, id .. ' ' .. state) -- a hint, and channels may be denied
    counting().count(id, job, -1)
    if job.flight ~= '' then flights().ended(id, job, state, result) end
  end

  -- The result JSON of a job that ends without a worker's answer. `id` needs no escaping: submit has checked it.
  -- `retry_after_ms`: the same job may succeed then; nil: never.
  local function failure(id, job, state, message, code, retry_after_ms)
    local retry = retry_after_ms and format('true,"retry_after_s":%.3f', retry_after_ms / 1000) or 'false'
    return '{"request_id":"' .. id .. '","state":"' .. state .. '","attempt":' .. job.attempt .. ',"error":{"code":"'
      .. (code or state) .. '","message":"' .. message .. '","retryable":' .. retry .. '}}'
  end

  local function expire(id, job)
    take_out(id, job)
    finish(id, job, 'expired', failure(id, job, 'expired', "The job's deadline passed."))
  end

  -- Quarantines a job that stands nowhere.
  local function bury(id, job)
    local text = 'The job was quarantined, because processes crashed under it.'
    finish(id, job, 'dead', failure(id, job, 'dead', text))
    call('ZADD', p .. ':dead', now, id)
    call('ZREMRANGEBYSCORE', p .. ':dead', '-inf', now - DEAD_TTL_MS)
    call('ZREMRANGEBYRANK', p .. ':dead', 0, -DEAD_CAP - 1)
    call('PEXPIRE', p .. ':dead', DEAD_TTL_MS)
  end

  -- Gives a job that stands nowhere back to its queues, or to `delayed`. Readers of its stream start again; when they
  -- have read no text and the attempt does not count (`burnt`), they hear nothing, and nothing at the next claim either.
  local function give_back(id, job, reason, delay_ms, burnt)
    call('HSET', key_of(id), 'attempt', job.attempt, 'crashes', job.crashes, 'tiers', job.tiers, 'back', job.token,
         'reason', reason, 'retries', job.retries)
    if job.started == '1' and (burnt or job.written ~= '0') then
      call('HSET', key_of(id), 'started', '0', 'written', '0')
      emit(id, job, 'kind', 'restarted', 'attempt', job.attempt, 'data', reason)
    end
    if delay_ms > 0 then
      call('HSET', key_of(id), 'state', 'delayed', 'token', '', 'owner', '')
      call('ZADD', p .. ':delayed', now + delay_ms, id)
    else
      put_back(id, job)
    end
  end

  return {take_out = take_out, put_back = put_back, finish = finish, failure = failure, expire = expire, bury = bury,
          give_back = give_back}
end

-- Equal jobs that are under way together: one leads and is computed; the others follow it (state `following`), under no
-- lease and in no queue, each with its own deadline. p:flight:<digest> has `leader` = id and, of each follower, `f:<id>` =
-- its score. Every way in which a leader can end goes through `finish`, and so through `ended`. Made on demand: ended.
flights = function()
  local MOST_BYTES = 8388608 -- of shared results in one call: some 50 ms; who is left over is routed again
  local SAME_FOR_ALL = {invalid_request = true, context_overflow = true, invalid_grammar = true, template_failed = true}
  local EQUAL_NOTE = '{"kind":"flight","score":1,"age_s":0,"entry":"","reason":"an equal job was under way"}'
  local move = moves()

  -- The followers that are alive, the best first.
  local function followers_of(key)
    local fields, found = call('HGETALL', key), {}
    for i = 1, #fields, 2 do
      local id = string.match(fields[i], '^f:(.+)$')
      if id and redis.pcall('HGET', key_of(id), 'state') == 'following' then
        found[#found + 1] = {id = id, score = tonumber(fields[i + 1]) or 0}
      end
    end
    table.sort(found, function(one, other) return one.score < other.score end)
    return found
  end

  -- How the leader's result is shared, or nil when it must not be: it has not our form, or it is an error that may be the
  -- leader's alone. The patterns meet nothing of the answer's text: quotes are escaped in there. `cache` is the last field.
  local function shareable(result, leader, state)
    local head = '{"request_id":"' .. leader .. '"'
    local whole, answer = pcall(cjson.decode, result)
    if string.sub(result, 1, #head) ~= head or not whole then return nil end
    if state ~= 'done' and not (type(answer.error) == 'table' and SAME_FOR_ALL[answer.error.code]) then return nil end
    local body = string.gsub(string.sub(result, #head + 1), '"from_cache":false', '"from_cache":true', 1)
    body = string.match(body, '^(.*),"cache":') or string.sub(body, 1, -2)
    local first, rest = string.match(body, '^(.-)"latency_ms":[%d.eE+-]+(.*)$')
    if not first then return nil end
    local middle, last = string.match(rest, '^(.*)"timings":%b{}(.*)$')
    local text = state == 'done' and type(answer.content) == 'string' and answer.content or ''
    return {first = first, middle = middle or rest, last = last, text = text, bytes = #result + #text,
            tokens = format('%d', tonumber(answer.tokens_generated) or 0)}
  end

  local function deliver(shared, state, id, job)
    local ms = format('%.0f', math.max(0, now - (tonumber(job.submitted) or now)))
    local note = string.match(call('HGET', key_of(id), 'route') or '', '"lookup":({"kind":"flight".*})}$')
    local timings = shared.last and '"timings":{"queue_ms":' .. ms .. ',"route_ms":0,"ttft_ms":' .. ms
      .. ',"decode_ms":0,"total_ms":' .. ms .. '}' .. shared.last or ''
    local result = '{"request_id":"' .. id .. '"' .. shared.first .. '"latency_ms":' .. ms .. shared.middle .. timings
      .. ',"cache":' .. (note or EQUAL_NOTE) .. '}'
    job.flight = ''
    if shared.text ~= '' then
      emit(id, job, 'kind', 'started', 'attempt', job.attempt)
      emit(id, job, 'kind', 'token', 'attempt', job.attempt, 'offset', '0', 'text', shared.text, 'tokens', shared.tokens)
    end
    move.finish(id, job, state, result)
  end

  -- The first follower leads, and what crashed under the old leader counts: equal poison crashes as one. When the old one
  -- had started, the heir is not to blame for the time that this took: no class time-out ends it.
  local function hand_over(key, followers, old)
    local id = followers[1].id
    local job = read(id)
    call('HDEL', key, 'f:' .. id)
    call('HSET', key, 'leader', id)
    local crashes = math.max(tonumber(job.crashes) or 0, tonumber(old.crashes) or 0)
    local patient = (old.started == '1' or old.patient == '1') and '1' or job.patient
    move.put_back(id, job, 'crashes', format('%d', crashes), 'patient', patient)
  end

  -- Alone from here on, with these crashes; `again`: to be routed again, where the cache may have the answer.
  local function let_go(id, job, crashes, again)
    if again then job.tiers = '' end
    job.flight = ''
    move.put_back(id, job, 'flight', '', 'tiers', job.tiers, 'crashes', crashes)
  end

  -- The leader was quarantined: whoever asked the same is, too, with its evidence. Who only meant the same runs alone.
  local function follow_to_the_grave(id, follower, leader, crashes)
    local job = read(follower)
    if string.find(call('HGET', key_of(follower), 'route') or '', '"lookup":{"kind":"flight"', 1, true) then
      return let_go(follower, job, crashes)
    end
    local evidence = call('HGET', key_of(leader), 'evidence') or ''
    call('HSET', key_of(follower), 'crashes', crashes, 'reason', 'leader_died', 'evidence', evidence)
    job.crashes = crashes
    move.bury(follower, job)
  end

  -- A job of a flight has ended in this way, or has `left` it. What its end means for those that follow it.
  local function ended(id, job, state, result)
    local key = p .. ':flight:' .. job.flight
    if redis.pcall('HGET', key, 'leader') ~= id then return end
    local followers, budget = followers_of(key), MOST_BYTES
    local shared = #followers > 0 and (state == 'done' or state == 'failed') and shareable(result, id, state)
    if #followers > 0 and not shared and state ~= 'done' and state ~= 'dead' then return hand_over(key, followers, job) end
    call('DEL', key)
    for _, follower in ipairs(followers) do
      if state == 'dead' then
        follow_to_the_grave(id, follower.id, id, job.crashes)
      elseif shared and budget > 0 then
        budget = budget - shared.bytes
        deliver(shared, state, follower.id, read(follower.id))
      else
        let_go(follower.id, read(follower.id), '0', shared)
      end
    end
  end

  return {ended = ended}
end

-- What few scripts and rare cases need. Made on demand: published, read_bounds, room_after_ms, own_idem_key, forget.
local function rare()
  -- The published limits of these names, as numbers, 0 for what is not there; whoever may write, garbage harms nobody.
  local function published(...)
    local defaults = {max_jobs = 100000, max_bytes = 1073741824, max_tenant_jobs = 50000, result_ttl_s = 600,
                      stream_cap = 10000, mail_cap = 20000} -- until a daemon has configured the queue
    local names, found, limits = {...}, redis.pcall('HMGET', p .. ':limits', ...), {}
    for i, name in ipairs(names) do
      local number = tonumber(found[i] or nil) or -1
      limits[name] = number >= 0 and number < 1e12 and number or defaults[name] or 0 -- neither nan nor inf
    end
    return limits
  end

  -- For the producers' scripts: the bounds come from the published limits.
  local function read_bounds()
    local limits = published('result_ttl_s', 'stream_cap', 'mail_cap')
    set_bounds(math.max(limits.result_ttl_s, 1), format('%.0f', limits.stream_cap), format('%.0f', limits.mail_cap))
  end

  -- When a hundredth of `jobs` (at least one) will have started, as text; a second when nobody has measured.
  local function room_after_ms(jobs, drain_milli_hz)
    if drain_milli_hz <= 0 then return '1000' end
    return format('%.0f', math.min(math.max(math.max(jobs / 100, 1) * 1000000 / drain_milli_hz, 100), 60000))
  end

  -- The key of the job's idempotency key while it still names this job, else nil.
  local function own_idem_key(id, job)
    local key = p .. ':idem:' .. job.tenant .. ':' .. job.idem
    local value = job.idem ~= '' and redis.pcall('GET', key)
    return type(value) == 'string' and string.match(value, '^.* (%S+)$') == id and key or nil
  end

  -- Drops an answer that was kept for equal questions; whether there was one. The bytes of all that are left stay known.
  local function forget(key)
    local sizes = p .. ':answers:bytes'
    local bytes = tonumber(redis.pcall('HGET', sizes, key) or nil) or 0
    local removed = call('DEL', p .. ':answer:' .. key)
    redis.pcall('ZREM', p .. ':answers', key)
    redis.pcall('HDEL', sizes, key)
    if bytes > 0 then redis.pcall('HINCRBY', sizes, 'sum', format('%.0f', -bytes)) end
    return removed
  end

  return {published = published, read_bounds = read_bounds, room_after_ms = room_after_ms, own_idem_key = own_idem_key,
          forget = forget}
end
