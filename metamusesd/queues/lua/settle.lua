-- settle · bring jobs to their terminal state; who settles first decides
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap, then for each job: id token state(done|failed|cancelled|expired|dead) result
-- reply for each job: ok (this call ended it, or the same one before) | cancelled | expired | lost

local WIDTH, HEAD = 4, 3

local function check()
  if (#ARGV - HEAD) % WIDTH ~= 0 or not tonumber(ARGV[1]) then
    return invalid('arguments', 'do not add up', 'see the head of settle.lua')
  end
  for a = HEAD, #ARGV - 1, WIDTH do
    if not TERMINAL[ARGV[a + 3]] then return invalid('state', 'not terminal', 'give done, failed, cancelled, …') end
  end
end

local function settle(id, token, state, result)
  local job = read(id)
  local holds, verdict = held(job, token)
  if holds then
    take_out(id, job)
    finish(id, job, state, result)
  elseif job and job.token == token and job.state == state then
    return 'ok'
  end
  return verdict
end

local mistake = check()
if mistake then return mistake end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
local reply = {}
for a = HEAD, #ARGV - 1, WIDTH do
  reply[#reply + 1] = settle(unpack(ARGV, a + 1, a + WIDTH))
end
close()
return reply
