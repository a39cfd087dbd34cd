-- cancel · settle a job as cancelled, unless it ended before
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap id
-- reply the job's state now (`cancelled`, or how it had ended), or `gone`
--
-- A dispatcher that runs the job learns it from the verdict of its next append or renew.

if #ARGV ~= 4 or not tonumber(ARGV[1]) then
  return invalid('arguments', #ARGV .. ' given', 'give result_ttl_s stream_cap mail_cap id')
end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
local id, job = ARGV[4], read(ARGV[4])
if not job then return 'gone' end
if TERMINAL[job.state] then return job.state end
take_out(id, job)
finish(id, job, 'cancelled', failure(id, job, 'cancelled', 'The job was cancelled.'))
close()
return 'cancelled'
