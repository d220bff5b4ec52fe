-- Removes what the indexes have of the session and is not so any more, as the session has expired.
if not session.exists then
  unlist()
end
for _, identity in ipairs(asked.parked) do
  if redis.call('HEXISTS', PARKS, identity) == 0 then
    redis.call('ZREM', PARKED, identity .. '\n' .. asked.id)
  end
end
for _, number in ipairs(asked.waiting) do
  local turn = read_turn(number)
  if not turn or #waiting_in(turn) == 0 then
    redis.call('ZREM', WAITING, asked.id .. '\n' .. whole(number))
  end
end
for _, traced in ipairs(asked.traces) do
  if redis.call('HEXISTS', TURNS, traced[2]) == 0 then
    redis.call('ZREM', TRACES, member(traced[1], traced[2]))
  end
end
return {}
