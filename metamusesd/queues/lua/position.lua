-- position · where a job stands, and when it will start as far as anybody can tell. Writes nothing.
--
-- KEYS  p
-- ARGV  id
-- reply state queue ahead start_p50_ms start_p90_ms, or nil when there is no such job
--       queue: ingress, or the tier where it will be served soonest; empty, with ahead 0, when it waits nowhere
--       ahead: jobs that go first there; start_p50_ms, start_p90_ms: from now, -1 when nobody has measured that tier
--
-- `place` in common.lua has the formula. It costs one ZRANK a tier and one HGET a tier and live host.

if #ARGV ~= 1 then return invalid('arguments', #ARGV .. ' given', 'give the id') end
local job = read(ARGV[1], {'state', 'tiers'})
if not job then return false end
return {job.state, place(ARGV[1], job)}
