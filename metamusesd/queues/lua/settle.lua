-- settle · bring jobs to their terminal state; who settles first decides
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap, then for each job: id token state(done|failed|cancelled|expired|dead) result
-- reply for each job: ok (this call ended it, or the same one before) | cancelled | expired | lost

local WIDTH, HEAD = 4, 3
local FIELDS = {'state', 'token', 'attempt', 'tenant', 'bytes', 'idem', 'deadline', 'reply_to', 'queue',
                'prio', 'score'}

local function check()
  if (#ARGV - HEAD) % WIDTH ~= 0 or not tonumber(ARGV[1]) then
    return invalid('arguments', 'do not add up', 'see the head of settle.lua')
  end
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

local mistake = check()
if mistake then return mistake end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
local reply = {}
local ids = {}
for a = HEAD, #ARGV - 1, WIDTH do
  reply[#reply + 1] = look(ARGV[a + 1], ARGV[a + 2], ARGV[a + 3])
  if jobs[ARGV[a + 1]] and not jobs[ARGV[a + 1]].result then
    jobs[ARGV[a + 1]].result = ARGV[a + 4]
    ids[#ids + 1] = ARGV[a + 1]
  end
end
if #ids > 0 then call('ZREM', p .. ':leases', unpack(ids)) end
local move = moves()
for _, id in ipairs(ids) do move.finish(id, jobs[id], jobs[id].ends, jobs[id].result) end
close()
return reply
