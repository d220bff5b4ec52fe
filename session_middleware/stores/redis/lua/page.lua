-- One shard of the index: the next sessions in an order, each as its id and what it is sorted by.
-- It looks at as many as it returns, and at more where a filter leaves some out: asked.few sessions
-- with the prefix are sorted, more of them are looked for in the order.
local RECENT, CREATED, NAMES = KEYS[1], KEYS[2], KEYS[3]
local asked = cjson.decode(ARGV[1])
local after, prefix = asked.after, asked.prefix
local SORTED = ({updated = RECENT, created = CREATED})[asked.order]
local CHUNK = 500
local found = {}

local function is_wanted(id)
  if prefix and id:sub(1, #prefix) ~= prefix then
    return false
  end
  return not asked.idle_since or tonumber(redis.call('ZSCORE', RECENT, id) or math.huge) <= asked.idle_since
end

-- In the order of their bytes, as the server sorts; Lua would sort by the language of the machine.
local function is_less(one, other)
  for at = 1, math.min(#one, #other) do
    local a, b = one:byte(at), other:byte(at)
    if a ~= b then
      return a < b
    end
  end
  return #one < #other
end

local function with_prefix(from)
  return from or (prefix and '[' .. prefix) or '-', prefix and '(' .. prefix .. '\255' or '+'
end

if not SORTED then
  local from, to = with_prefix(after and not is_less(after.id, prefix or '') and '(' .. after.id or nil)
  local ids
  repeat
    ids = redis.call('ZRANGEBYLEX', NAMES, from, to, 'LIMIT', 0, math.max(asked.limit, 10))
    for _, id in ipairs(ids) do
      if #found < asked.limit and is_wanted(id) then
        table.insert(found, {id, ''})
      end
      from = '(' .. id
    end
  until #found >= asked.limit or #ids == 0
  return found
end

-- Newest first, and among those of one moment the greatest id.
local function is_behind(score, id)
  if not after then
    return true
  end
  return score < after.key or (score == after.key and is_less(id, after.id))
end

if prefix and redis.call('ZLEXCOUNT', NAMES, with_prefix()) <= asked.few then
  for _, id in ipairs(redis.call('ZRANGEBYLEX', NAMES, with_prefix())) do
    local score = redis.call('ZSCORE', SORTED, id)
    if score and is_wanted(id) and is_behind(tonumber(score), id) then
      table.insert(found, {id, score})
    end
  end
  table.sort(found, function(one, other)
    local a, b = tonumber(one[2]), tonumber(other[2])
    return a > b or (a == b and is_less(other[1], one[1]))
  end)
  while #found > asked.limit do
    table.remove(found)
  end
  return found
end

-- The rank of the first one behind the cursor: those of its own moment are in the order of their ids.
local low = 0
if after then
  local key = string.format('%.0f', after.key)
  low = redis.call('ZCOUNT', SORTED, '(' .. key, '+inf')
  local high = low + redis.call('ZCOUNT', SORTED, key, key)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_less(redis.call('ZREVRANGE', SORTED, middle, middle)[1], after.id) then
      high = middle
    else
      low = middle + 1
    end
  end
end
if asked.idle_since and SORTED == RECENT then
  low = math.max(low, redis.call('ZCOUNT', RECENT, string.format('(%.0f', asked.idle_since), '+inf'))
end
local filters = prefix or (asked.idle_since and SORTED ~= RECENT)
while #found < asked.limit do
  local size = filters and CHUNK or asked.limit
  local got = redis.call('ZREVRANGE', SORTED, low, low + size - 1, 'WITHSCORES')
  if #got == 0 then
    break
  end
  for at = 1, #got, 2 do
    if #found < asked.limit and is_wanted(got[at]) then
      table.insert(found, {got[at], got[at + 1]})
    end
  end
  low = low + size
end
return found
