-- requeue · give jobs back to their queues, with their old scores
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap max_crashes, then for each job:
--       id token reason crashed(0|1|2) burn(0|1) delay_ms reroute(0|1)
-- reply for each job: ok (given back, or `dead` by its last crash, now or by the same call before) | cancelled | expired | lost
--
-- `crashed` counts a crash and an attempt, `burn` an attempt; neither: the job runs again as if it had not been claimed.
-- 2 says that the job was alone in the worker that crashed: only such a crash can make it `dead`, from max_crashes on.

local WIDTH, HEAD = 7, 4

local function check()
  if (#ARGV - HEAD) % WIDTH ~= 0 or not (tonumber(ARGV[1]) and tonumber(ARGV[4])) then
    return invalid('arguments', 'do not add up', 'see the head of requeue.lua')
  end
  for a = HEAD, #ARGV - 1, WIDTH do
    if not string.match(ARGV[a + 4], '^[012]$') then return invalid('crashed', 'not 0 to 2', 'give 0, 1 or 2') end
    if not string.match(ARGV[a + 6], '^%d+$') then return invalid('delay_ms', 'not a number', 'give 0 or more') end
  end
end

local function bury(id, job)
  finish(id, job, 'dead', failure(id, job, 'dead', 'The job was quarantined, because processes crashed under it.'))
  call('ZADD', p .. ':dead', now, id)
  call('ZREMRANGEBYSCORE', p .. ':dead', '-inf', now - DEAD_TTL_MS)
  call('ZREMRANGEBYRANK', p .. ':dead', 0, -DEAD_CAP - 1)
  call('PEXPIRE', p .. ':dead', DEAD_TTL_MS)
end

local function requeue(id, token, reason, crashed, burn, delay_ms, reroute)
  local job = read(id)
  local holds, verdict = held(job, token)
  if not holds then
    local before = job and (job.back == token or job.state == 'dead' and job.token == token)
    return before and not (job.state == 'cancelled' or job.state == 'expired') and 'ok' or verdict
  end
  take_out(id, job)
  local burnt = crashed ~= '0' or burn == '1'
  if crashed ~= '0' then job.crashes = job.crashes + 1 end
  if reroute == '1' then job.tiers = '' end
  if crashed == '2' and job.crashes >= tonumber(ARGV[4]) then
    call('HSET', key_of(id), 'crashes', job.crashes, 'reason', reason)
    bury(id, job)
  else
    if burnt then job.attempt = job.attempt + 1 end
    give_back(id, job, reason, tonumber(delay_ms), burnt)
  end
  return 'ok'
end

local mistake = check()
if mistake then return mistake end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
local reply = {}
for a = HEAD, #ARGV - 1, WIDTH do
  reply[#reply + 1] = requeue(unpack(ARGV, a + 1, a + WIDTH))
end
close()
return reply
