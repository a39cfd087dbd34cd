-- cancel · settle a job as cancelled, unless it ended before
--
-- KEYS  p
-- ARGV  id
-- reply the job's state now (`cancelled`, or how it had ended), or `gone`
--
-- A dispatcher that runs the job learns it from the verdict of its next append or renew.

if #ARGV ~= 1 then return invalid('arguments', #ARGV .. ' given', 'give the id') end
rare().read_bounds()
local id, job = ARGV[1], read(ARGV[1])
if not job then return 'gone' end
if TERMINAL[job.state] then return job.state end
take_out(id, job)
finish(id, job, 'cancelled', failure(id, job, 'cancelled', 'The job was cancelled.'))
close()
return 'cancelled'
