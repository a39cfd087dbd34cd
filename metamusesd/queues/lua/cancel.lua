-- cancel · settle a job as cancelled, unless it ended before
--
-- KEYS  p
-- ARGV  id
-- reply the job's state now (`cancelled`, or how it had ended), or `gone`
--
-- The dispatcher that runs the job learns it from the verdict of its next append or renew; the marker `cancels:<owner>`
-- is the hint to make one now.

if #ARGV ~= 1 then return invalid('arguments', #ARGV .. ' given', 'give the id') end
rare().read_bounds()
local id, job = ARGV[1], read(ARGV[1])
if not job then return 'gone' end
if terminal(job.state) then return job.state end
local move = moves()
move.take_out(id, job)
move.finish(id, job, 'cancelled', move.failure(id, job, 'cancelled', 'The job was cancelled.'))
if job.state == 'running' and job.owner ~= '' then arm('cancels:' .. job.owner) end
close()
return 'cancelled'
