-- recount · count the live jobs anew, so that a mistake in the counters does not stay
--
-- KEYS  p
-- ARGV  interval_ms chunk
-- reply 0 not due | 1 `chunk` jobs more were counted | 2 all were counted: the counters are right now
--
-- Not more often than once in interval_ms, for all callers together. Few jobs are counted in one call. Of more, each call
-- counts the next `chunk`, in the order of their sequence numbers, into p:recount; a job that ends (or comes back to life)
-- with a number that was passed already is taken from there (or put there) by `count_job`, so that the sum is exact when
-- the last one is passed. An entry of p:live without a live job behind it is a mistake as well, and goes.

local interval_ms, chunk = tonumber(ARGV[1]), tonumber(ARGV[2])
local KEEP_MS = '60000' -- a recount that nobody goes on with is forgotten
local FIELDS = {'state', 'tenant', 'prio', 'bytes'}
local live, part, whole = p .. ':live', p .. ':recount', p .. ':counters'

if not (interval_ms and interval_ms > 0 and chunk and chunk > 0) then
  return invalid('arguments', 'do not add up', 'give interval_ms chunk')
end
call('ZREM', live, '') -- a removal first: what follows it is allowed when memory is full
local from = call('EXISTS', part) == 1 and call('HGET', whole, 'cursor')
if not from then
  if not call('SET', p .. ':recounted', '1', 'NX', 'PX', ARGV[1]) then return 0 end
  call('DEL', part)
  from = '0'
end

local entries = call('ZRANGEBYSCORE', live, '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local sums = {}
for i = 1, #entries, 2 do
  local job = read(entries[i], FIELDS)
  if job and not TERMINAL[job.state] then count(sums, job, 1) else call('ZREM', live, entries[i]) end
end
if #entries == 2 * chunk then
  for field, sum in pairs(sums) do call('HINCRBY', part, field, sum) end
  call('HSET', whole, 'cursor', format('%.0f', entries[#entries]))
  call('PEXPIRE', part, KEEP_MS)
  return 1
end

local before = call('HGETALL', part)
for i = 1, #before, 2 do
  sums[before[i]] = (sums[before[i]] or 0) + before[i + 1]
end
call('DEL', whole, part)
if (sums.jobs or 0) > 0 then
  for field, sum in pairs(sums) do
    if sum > 0 then call('HSET', whole, field, format('%.0f', sum)) end
  end
end
return 2
