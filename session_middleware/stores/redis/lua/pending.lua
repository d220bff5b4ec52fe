-- The runs that wait for approval, each as its turn, its name, its state, and when the turn ended or
-- began; with asked.all, also those that a resume is at work on.
local numbers, found = {}, {}
local parks = redis.call('HGETALL', PARKS)
for at = 2, #parks, 2 do
  numbers[tonumber(parks[at])] = true
end
for number in pairs(numbers) do
  local turn = read_turn(number)
  local at_work = is_held() and session.turn == number
  if turn and (asked.all or not at_work) then
    for _, identity in ipairs(waiting_in(turn)) do
      table.insert(found, {number, identity, redis.call('HGET', STATES, identity) or '',
        turn.ended_at or turn.started_at})
    end
  end
end
return found
