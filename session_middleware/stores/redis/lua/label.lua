-- Puts title and metadata, as JSON or empty, in place of those that were read: 1; 0 where others are
-- there by now; -1 where there is no such session.
if not session.exists then
  return -1
end
if was_done() then -- the answer to an earlier sending was lost
  return 1
end
local names = {'title', 'metadata'}
local there = redis.call('HMGET', SESSION, unpack(names))
if (there[1] or '') ~= ARGV[2] or (there[2] or '') ~= ARGV[3] then
  return 0
end
for at, name in ipairs(names) do
  if ARGV[3 + at] == '' then
    redis.call('HDEL', SESSION, name)
  else
    redis.call('HSET', SESSION, name, ARGV[3 + at])
  end
end
remember()
return 1
