-- revive · give a dead job another life: back to ingress in its old place, with no crashes and no deadline
--
-- KEYS  p
-- ARGV  id
-- reply queued | gone | the job's state, when it is not dead: then nothing was changed
--
-- Its evidence stays with it. Its stream loses the `dead` entry, so that a stream has one end, and says `restarted` with
-- data `revived`; mailboxes keep both. No class time-out ends it: those are for first attempts.

if #ARGV ~= 1 then return invalid('arguments', #ARGV .. ' given', 'give the id') end
rare().read_bounds()
local id, job = ARGV[1], read(ARGV[1])

-- The stream without its end.
local function reopen(events)
  local last = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  if last and last[2][2] == 'dead' then call('XDEL', events, last[1]) end
  call('PERSIST', events)
end

call('ZREM', p .. ':dead', id)
if not job then return 'gone' end
if job.state ~= 'dead' then return job.state end
local key, idem_key = key_of(id), rare().own_idem_key(id, job)
job.attempt, job.tiers = format('%.0f', (tonumber(job.attempt) or 1) + 1), ''
call('DEL', p .. ':result:' .. id)
call('HDEL', key, 'deadline', 'ended', 'told', 'back', 'tiers', 'route', 'flight', 'patient')
call('PERSIST', key)
reopen(p .. ':events:' .. id)
if idem_key then call('PERSIST', idem_key) else call('HDEL', key, 'idem') end
moves().put_back(id, job, 'attempt', job.attempt, 'crashes', '0', 'retries', '0', 'started', '0', 'written', '0', 'queue',
         'ingress', 'reason', 'revived')
emit(id, job, 'kind', 'restarted', 'attempt', job.attempt, 'data', 'revived')
counting().count(id, job, 1)
close()
return job.state
