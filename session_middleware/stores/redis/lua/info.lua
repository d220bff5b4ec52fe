-- What is told of the session without its items; an item that is longer than asked.longest is not
-- looked into, and of an answer no more than asked.excerpt bytes are.
if not session.exists then
  return {}
end
local got = redis.call('HMGET', SESSION, 'created', 'updated', 'turns', 'items', 'bytes', 'title',
  'metadata')
local number, state = session.newest, ''
while number > 0 and state == '' do
  local turn = read_turn(number)
  if turn then
    -- A turn that runs under no lease has died, though it may still renew it and go on.
    local dead = turn.state == 'running' and not (is_held() and session.turn == number)
    state = dead and 'abandoned' or turn.state
  end
  number = number - 1
end
local answer = ''
number = session.newest
while number > 0 and answer == '' do
  local fields = {}
  for at = number, math.max(1, number - 99), -1 do
    table.insert(fields, at .. ':output')
  end
  local outputs = redis.call('HMGET', TURNS, unpack(fields))
  for at = 1, #fields do
    if outputs[at] and answer == '' then
      answer = outputs[at]:sub(1, asked.excerpt)
    end
  end
  number = number - 100
end
local function item_at(rank)
  local stored = redis.call('ZRANGE', ITEMS, rank, rank)[1] or ''
  return #stored <= asked.longest and stored:sub(PLACE + 1) or ''
end
return {got[1], got[2], got[3] or 0, got[4] or 0, got[5] or 0, got[6] or '', got[7] or '', state,
  answer, item_at(0), item_at(-1)}
