-- push · write `queued` events with their position to the first jobs that wait for a tier, when it has changed
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap tier most(1…1000)
-- reply how many were written
--
-- One caller a second does it, whoever comes first. A job is told when it wants events, has waited for PATIENCE_MS, has
-- not begun, is served soonest here, and stands elsewhere than it was told last (field `told`, "<tier> <ahead>"). The
-- event's data is JSON: {"queue","ahead","start_p50_ms","start_p90_ms"}, with null for what nobody has measured.

local PAUSE_MS, PATIENCE_MS = '900', 500
local FIELDS = {'state', 'stream', 'attempt', 'submitted', 'told', 'tiers', 'started', 'reply_to'}

local function number_or_null(ms)
  return ms < 0 and 'null' or format('%.0f', ms)
end

local function tell(id, tier)
  local job = read(id, FIELDS)
  local quiet = not job or job.stream ~= '1' or job.state ~= 'ready' or job.started == '1'
  if quiet or now - (tonumber(job.submitted) or now) < PATIENCE_MS then return 0 end
  local queue, ahead, p50_ms, p90_ms = place(id, job)
  local told = queue .. ' ' .. ahead
  if queue ~= tier or job.told == told then return 0 end
  call('HSET', key_of(id), 'told', told)
  emit(id, job, 'kind', 'queued', 'attempt', job.attempt, 'data',
       '{"queue":"' .. queue .. '","ahead":' .. ahead .. ',"start_p50_ms":' .. number_or_null(p50_ms)
         .. ',"start_p90_ms":' .. number_or_null(p90_ms) .. '}')
  return 1
end

local tier, most = ARGV[4], tonumber(ARGV[5])
if #ARGV ~= 5 or not tonumber(ARGV[1]) or not most or most < 1 or most > BATCH then
  return invalid('arguments', 'do not add up', 'see the head of push.lua')
elseif not string.match(tier, '^[%w_-]+$') then
  return invalid('tier', 'not a name', 'use A-Z a-z 0-9 _ -')
end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
local ids = call('ZRANGE', queue_key(tier), 0, most - 1)
if #ids == 0 or not call('SET', p .. ':pushed:' .. tier, '1', 'PX', PAUSE_MS, 'NX') then return 0 end
local written = 0
for _, id in ipairs(ids) do written = written + tell(id, tier) end
close()
return written
