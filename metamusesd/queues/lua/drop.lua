-- drop · forget a dead job: its hash, result, events and idempotency key
--
-- KEYS  p
-- ARGV  id
-- reply dropped | gone | the job's state, when it is not dead: then nothing was changed
--
-- The same call again within REPEAT_MS answers `dropped` again.

local REPEAT_MS = '60000'

if #ARGV ~= 1 then return invalid('arguments', #ARGV .. ' given', 'give the id') end
local id = ARGV[1]
local job, tombstone = read(id), p .. ':dropped:' .. id
if not job or job.state ~= 'dead' then
  call('ZREM', p .. ':dead', id) -- the list may be wrong about it
  return job and job.state or call('EXISTS', tombstone) == 1 and 'dropped' or 'gone'
end
call('ZREM', p .. ':dead', id)
call('DEL', key_of(id), p .. ':result:' .. id, p .. ':events:' .. id)
local idem_key = rare().own_idem_key(id, job)
if idem_key then call('DEL', idem_key) end
call('SET', tombstone, '1', 'PX', REPEAT_MS)
return 'dropped'
