-- What the indexes have of the session: when it was created and used last, where it can be seen; the
-- names of its parked runs; of its newest turn, the one that is asked for and those with parked runs,
-- or of all turns, since when they wait, and their traces.
local dates = {}
if session.exists then
  dates = redis.call('HMGET', SESSION, 'created', 'updated')
end
local numbers, waiting, traces = {[session.newest] = true}, {}, {}
if asked.turn then
  numbers[asked.turn] = true
end
local parks = redis.call('HGETALL', PARKS)
local identities = {}
for at = 1, #parks, 2 do
  table.insert(identities, parks[at])
  numbers[tonumber(parks[at + 1])] = true
end
if asked.all then
  for number = 1, session.newest do
    numbers[number] = true
  end
end
for number in pairs(numbers) do
  local turn = read_turn(number)
  if turn then
    for _, id in ipairs(traces_of(turn)) do
      table.insert(traces, {id, number})
    end
    if #waiting_in(turn) > 0 then
      table.insert(waiting, {number, turn.parked_at or whole(microseconds)})
    else
      table.insert(waiting, {number, ''})
    end
  end
end
return {dates, identities, waiting, traces}
