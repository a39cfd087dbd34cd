-- complain · a producer says that the answer from the cache that it got was wrong
--
-- KEYS  p
-- ARGV  id of the job
-- reply noted | not_cached (its answer was computed for it) | gone (no such result, or not any more)
--
-- An exact answer is forgotten at once; of a semantic one the vectors process hears through a dispatcher, by p:complaints:
-- the entry's bar rises, or it goes. Only the first complaint about a job counts.

local MOST, KEEP_MS = 1000, '86400000'

if #ARGV ~= 1 then return invalid('arguments', #ARGV .. ' given', 'give the id') end
local id = ARGV[1]
local result = redis.pcall('GET', p .. ':result:' .. id)
if type(result) ~= 'string' then return 'gone' end
local whole, answer = pcall(cjson.decode, result)
local note = whole and type(answer) == 'table' and answer.cache
if type(note) ~= 'table' or (note.kind ~= 'exact' and note.kind ~= 'semantic') or type(note.entry) ~= 'string' then
  return 'not_cached'
end
if redis.pcall('HSETNX', key_of(id), 'complained', '1') == 0 then return 'noted' end -- an error: memory is full
if note.kind == 'exact' then
  rare().forget(note.entry)
else
  call('RPUSH', p .. ':complaints', note.entry .. ' ' .. format('%.6f', tonumber(note.score) or 0))
  call('LTRIM', p .. ':complaints', -MOST, -1)
  call('PEXPIRE', p .. ':complaints', KEEP_MS)
end
return 'noted'
