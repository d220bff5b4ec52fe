-- Puts copied turns in place of the session's. Each of asked.turns says how many of the texts that
-- follow ARGV[1] are its own: its turn, its end, its output or '', its items, calls and states.
if was_done() then -- the answer to an earlier sending was lost
  return {'done'}
end
if not holds(asked.token) then
  return {'lost'}
end
local unparked = forget()
local at = 2
local function following()
  at = at + 1
  return ARGV[at - 1]
end
for _, copy in ipairs(asked.turns) do
  local number, text = copy.turn, following()
  local turn = cjson.decode(text)
  redis.call('HSET', TURNS, number .. ':end', following())
  local output = following()
  if output ~= '' then
    redis.call('HSET', TURNS, number .. ':output', output)
  end
  for _, run in ipairs(copy.items) do
    put_items(number, run[1], 0, at, run[2])
    at = at + run[2]
  end
  put_calls(number, copy.calls, at)
  at = at + #copy.calls
  for _, identity in ipairs(copy.states) do
    redis.call('HSET', STATES, identity, following())
  end
  for identity in pairs(turn.parks) do
    redis.call('HSET', PARKS, identity, number)
    if PARKED then
      redis.call('ZADD', PARKED, 0, identity .. '\n' .. asked.id)
    end
  end
  for _, id in ipairs(traces_of(turn)) do
    trace(id, number)
  end
  if turn.key then
    redis.call('HSET', IDEMPOTENCY, turn.key, number)
  end
  write_turn(number, turn)
  session.newest = number
end
redis.call('HSET', SESSION, 'newest', session.newest, 'turns', #asked.turns, 'created', asked.created,
  'updated', asked.updated)
for _, name in ipairs({'title', 'metadata'}) do
  if asked[name] then
    redis.call('HSET', SESSION, name, asked[name])
  end
end
list()
wake_next()
remember()
refresh()
return {'done', unpack(unparked)}
