-- requeue · give jobs back to their queues, with their old scores
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap max_crashes, then for each job:
--       id token reason fault delay_ms reroute(0|1) evidence(one JSON object, or empty)
--       tiers(separated by spaces; empty: as before) route(JSON, counts only with tiers)
-- reply for each job: ok (given back, or `dead` by its last crash, now or by the same call before) | cancelled | expired | lost
--
-- fault says what the job pays:
--       none         nothing: it runs again as if it had not been claimed
--       killed       an attempt: its worker was killed from outside
--       error        an attempt and a retry
--       crash        an attempt and a crash: its worker died, and other jobs were in it
--       crash_alone  the same, but it was alone: from max_crashes on, such a crash makes the job `dead`
-- The last 8 pieces of evidence, 16 KiB at most, stay in the job's hash, one a line.

local WIDTH, HEAD = 9, 4
local MAX_EVIDENCE, MAX_EVIDENCE_BYTES = 8, 16384
local DELAY_MOST_MS = 86400000 -- reap.lua takes what is delayed for longer for one of before the clock was put back
local move = moves()
local FAULTS = {none = true, killed = true, error = true, crash = true, crash_alone = true}

local function check()
  if (#ARGV - HEAD) % WIDTH ~= 0 or not (tonumber(ARGV[1]) and tonumber(ARGV[4])) then
    return invalid('arguments', 'do not add up', 'see the head of requeue.lua')
  end
  for a = HEAD, #ARGV - 1, WIDTH do
    if not FAULTS[ARGV[a + 4]] then return invalid('fault', 'unknown', 'see the head of requeue.lua') end
    if not string.match(ARGV[a + 5], '^%d+$') then return invalid('delay_ms', 'not a number', 'give 0 or more') end
  end
end

-- Puts one piece to the evidence; the oldest go when there are too many or they are too long.
local function keep(id, piece)
  if piece == '' then return end
  local all = (call('HGET', key_of(id), 'evidence') or '') .. string.gsub(piece, '[\r\n]', ' ') .. '\n'
  local _, pieces = string.gsub(all, '\n', '')
  while pieces > MAX_EVIDENCE or #all > MAX_EVIDENCE_BYTES do
    all, pieces = string.match(all, '\n(.*)$'), pieces - 1
  end
  call('HSET', key_of(id), 'evidence', all)
end

local function requeue(id, token, reason, fault, delay_ms, reroute, evidence, tiers, route)
  local job = read(id)
  local holds, verdict = held(job, token)
  if not holds then
    local before = job and (job.back == token or job.state == 'dead' and job.token == token)
    return before and not (job.state == 'cancelled' or job.state == 'expired') and 'ok' or verdict
  end
  move.take_out(id, job)
  keep(id, evidence)
  local burnt = fault ~= 'none'
  if fault == 'crash' or fault == 'crash_alone' then job.crashes = (tonumber(job.crashes) or 0) + 1 end
  if fault == 'error' then job.retries = (tonumber(job.retries) or 0) + 1 end
  if reroute == '1' then
    job.tiers = ''
  elseif string.match(tiers, '%S') then
    job.tiers = tiers
    call('HSET', key_of(id), 'route', route)
  end
  if fault == 'crash_alone' and job.crashes >= tonumber(ARGV[4]) then
    call('HSET', key_of(id), 'crashes', job.crashes, 'reason', reason)
    move.bury(id, job)
  else
    if burnt then job.attempt = job.attempt + 1 end
    move.give_back(id, job, reason, math.min(tonumber(delay_ms), DELAY_MOST_MS), burnt)
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
