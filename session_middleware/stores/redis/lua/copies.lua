-- The next turns above a number, oldest first, with the items, the calls and the states of all.
local rows, newest = {}, nil
local number = asked.after + 1
while number <= session.newest and #rows < asked.limit do
  local got = redis.call('HMGET', TURNS, number, number .. ':end', number .. ':output')
  if got[1] then
    local states = {}
    for identity in pairs(cjson.decode(got[1]).parks) do
      local state = redis.call('HGET', STATES, identity)
      if state then
        table.insert(states, identity)
        table.insert(states, state)
      end
    end
    table.insert(rows, {number, got[1], got[2], got[3], states})
    newest = number
  end
  number = number + 1
end
if not newest then
  return {{}, {}, {}}
end
local from = string.format('[%010d/', asked.after + 1)
local to = string.format('(%010d0', newest)
return {rows, redis.call('ZRANGEBYLEX', ITEMS, from, to),
  redis.call('ZRANGEBYLEX', CALLS, from, to)}
