-- append · write the token events of one batch step, for many jobs
--
-- KEYS  p
-- ARGV  result_ttl_s stream_cap mail_cap, then for each job: id token offset chars tokens text
--       offset: characters of this attempt before `text`; chars: characters in `text`; no text: only ask for the verdict
-- reply for each job: ok | raised | cancelled | expired | lost. raised: ok, and since the last call a job of a higher class
-- follows this one, which therefore has its class now. What was written before is skipped and answered ok; a gap is `lost`.

local WIDTH, HEAD = 6, 3
local FIELDS = {'state', 'token', 'attempt', 'deadline', 'written', 'stream', 'reply_to', 'raised'}

local function check()
  if (#ARGV - HEAD) % WIDTH ~= 0 or not tonumber(ARGV[1]) then
    return invalid('arguments', 'do not add up', 'see the head of append.lua')
  end
  for a = HEAD, #ARGV - 1, WIDTH do
    if not (string.match(ARGV[a + 3], '^%d+$') and string.match(ARGV[a + 4], '^%d+$')) then
      return invalid('offset', 'not a number', 'give characters, 0 or more')
    end
  end
end

-- `text` without its first `chars` characters of UTF-8.
local function drop(text, chars)
  local at = 1
  while chars > 0 and at <= #text do
    at = at + 1
    while at <= #text and string.byte(text, at) >= 128 and string.byte(text, at) < 192 do at = at + 1 end
    chars = chars - 1
  end
  return string.sub(text, at)
end

local function append(id, token, offset, chars, tokens, text)
  local job = read(id, FIELDS)
  local holds, verdict = held(job, token)
  if not holds then return verdict end
  if job.raised == '1' then
    call('HDEL', key_of(id), 'raised')
    verdict = 'raised'
  end
  if overdue(job) then verdict = 'expired' end -- its text is written all the same: it may still be settled as done
  local written, first, last = tonumber(job.written) or 0, tonumber(offset), offset + chars
  if chars == '0' or last <= written then return verdict end
  if first > written then return 'lost' end
  call('HSET', key_of(id), 'written', last)
  emit(id, job, 'kind', 'token', 'attempt', job.attempt, 'offset', written, 'text', drop(text, written - first),
       'tokens', tokens)
  return verdict
end

local mistake = check()
if mistake then return mistake end
set_bounds(ARGV[1], ARGV[2], ARGV[3])
local reply = {}
for a = HEAD, #ARGV - 1, WIDTH do
  reply[#reply + 1] = append(unpack(ARGV, a + 1, a + WIDTH))
end
close()
return reply
