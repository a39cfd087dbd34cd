-- forget · drop answers that may be given again, by label
--
-- KEYS  p
-- ARGV  cursor count tenant muse model tag; an empty label matches all
-- reply cursor(0: all were looked at) removed
--
-- Looks at `count` answers a call, from the least recently used on. The cursor is a rank: go on with what came back.

local cursor, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local answers = p .. ':answers'

if #ARGV ~= 6 or not cursor or not count or count < 1 or count > BATCH then
  return invalid('arguments', 'do not add up', 'see the head of forget.lua')
end

local function matches(key)
  local text = redis.pcall('HGET', p .. ':answer:' .. key, 'labels')
  local whole, labels = pcall(cjson.decode, type(text) == 'string' and text or '')
  if not whole or type(labels) ~= 'table' then return true end -- it has expired, or nobody can tell: let it go
  for i, name in ipairs({'tenant', 'muse', 'model'}) do
    if ARGV[i + 2] ~= '' and labels[name] ~= ARGV[i + 2] then return false end
  end
  local tags = type(labels.tags) == 'string' and labels.tags or ''
  return ARGV[6] == '' or string.find(' ' .. tags .. ' ', ' ' .. ARGV[6] .. ' ', 1, true) ~= nil
end

local keys, removed = call('ZRANGE', answers, cursor, cursor + count - 1), 0
for _, key in ipairs(keys) do
  if matches(key) then
    removed = removed + rare().forget(key)
    cursor = cursor - 1
  end
  cursor = cursor + 1
end
return {#keys == count and format('%.0f', cursor) or '0', removed}
