-- The newest turns below a number, newest first, with the items and the calls of all of them.
local rows, oldest = {}, nil
local number = math.min(session.newest, (asked.before or session.newest + 1) - 1)
local newest = number
while number > 0 and (not asked.limit or #rows < asked.limit) do
  local got = redis.call('HMGET', TURNS, number, number .. ':end', number .. ':output')
  if got[1] then
    -- A turn that runs under no lease has died, though it may still renew it and go on.
    local dead = not (is_held() and session.turn == number)
    table.insert(rows, {number, got[1], got[2], got[3], dead and 1 or 0})
    oldest = number
  end
  number = number - 1
end
if not oldest then
  return {{}, {}, {}}
end
local from = string.format('[%010d/', oldest)
local to = string.format('(%010d0', newest)
return {rows, redis.call('ZRANGEBYLEX', ITEMS, from, to),
  redis.call('ZRANGEBYLEX', CALLS, from, to)}
