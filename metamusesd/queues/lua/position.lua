-- position · where a job stands, and when it will start as far as anybody can tell. Writes nothing.
--
-- KEYS  p
-- ARGV  id
-- reply state queue ahead start_p50_ms start_p90_ms, or nil when there is no such job
--       queue: ingress, or the tier where it will be served soonest; empty, with ahead 0, when it waits nowhere
--       ahead: jobs that may go first there, aged ones of lower classes included: `ahead_of` in place.lua
--       start_p50_ms, start_p90_ms: from now, -1 when nobody has measured that tier: `start_of` in place.lua
--
-- It costs some twenty commands a tier, none dearer than the logarithm of the queue's length, and one more for each live
-- host; while jobs are aged, some twenty more a class.

if #ARGV ~= 1 then return invalid('arguments', #ARGV .. ' given', 'give the id') end
local job = read(ARGV[1], {'state', 'tiers', 'submitted', 'flight'})
if not job then return false end
return {job.state, place(ARGV[1], job)}
