-- recall · answers that were given before, to equal questions
--
-- KEYS  p
-- ARGV  repeat_ms(0: never), then for each job: id asked n_keys key …
--       asked: digest of the user and the question, or empty; keys: of p:answer:<key>, best first
-- reply for each job: hit key value | miss '' '' | repeat '' ''
--
-- repeat: the same user has asked the same within repeat_ms under another id, and so wants another answer.
-- What it writes are hints; that memory is full, or a key is somebody else's, costs nothing but them.

local HEAD, MOST_KEYS = 1, 64

local function check()
  if not string.match(ARGV[1] or '', '^%d+$') then return invalid('repeat_ms', 'not a number', 'give 0 or more') end
  local a = HEAD
  while a < #ARGV do
    local n = tonumber(ARGV[a + 3] or nil)
    if not n or n < 0 or n > MOST_KEYS or a + 3 + n > #ARGV then
      return invalid('arguments', 'do not add up', 'see the head of recall.lua')
    end
    a = a + 3 + n
  end
end

local function is_repeated(id, asked)
  if asked == '' or ARGV[1] == '0' then return false end
  local key = p .. ':asked:' .. asked
  local before = redis.pcall('GET', key)
  redis.pcall('SET', key, id, 'PX', ARGV[1])
  return type(before) == 'string' and before ~= id
end

local function look(from, n)
  for i = from, from + n - 1 do
    local value = redis.pcall('HGET', p .. ':answer:' .. ARGV[i], 'value')
    if type(value) == 'string' then
      redis.pcall('ZADD', p .. ':answers', 'XX', now_text, ARGV[i])
      return 'hit', ARGV[i], value
    end
  end
  return 'miss', '', ''
end

local mistake = check()
if mistake then return mistake end
local reply, a = {}, HEAD
while a < #ARGV do
  local n = tonumber(ARGV[a + 3])
  local kind, key, value = 'repeat', '', ''
  if not is_repeated(ARGV[a + 1], ARGV[a + 2]) then kind, key, value = look(a + 4, n) end
  local r = #reply
  reply[r + 1], reply[r + 2], reply[r + 3] = kind, key, value
  a = a + 3 + n
end
return reply
