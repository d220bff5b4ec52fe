-- Removes every word of these turns, and the lease's own turn with its lease.
if was_done() then -- the answer to an earlier sending was lost
  return {'done'}
end
if not holds(asked.token) then
  return {'lost'}
end
local unparked = {}
for _, number in ipairs(asked.turns) do
  local turn = read_turn(number)
  if turn then
    drop_items(turn_range(number))
    for _, stored in ipairs(calls_of(number)) do
      local call = cjson.decode(stored:sub(PLACE + 1))
      call.item, call.output = cjson.null, cjson.null
      redis.call('ZREM', CALLS, stored)
      redis.call('ZADD', CALLS, 0, stored:sub(1, PLACE) .. cjson.encode(call))
    end
    for identity in pairs(turn.parks) do
      table.insert(unparked, identity)
    end
    unpark_turn(turn)
    redis.call('HDEL', TURNS, number .. ':output')
    if turn.state == 'awaiting_approval' then
      turn.state = 'cancelled'
    end
    write_turn(number, turn)
  end
end
drop_turn(session.turn, read_turn(session.turn))
if session.exists then
  touch()
end
remember()
let_go()
refresh()
return {'done', unpack(unparked)}
