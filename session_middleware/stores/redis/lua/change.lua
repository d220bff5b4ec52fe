-- What changes a session as a whole: append a turn, replace or forget the history, remove an item.
-- Returns the states that are parked in it no more.

local function store_turn(first, count)
  local number, turn = begin_turn('completed', asked.at)
  turn.ended_at = asked.at
  turn.runs['1'] = {state = 'completed'}
  put_items(number, 1, 0, first, count)
  write_turn(number, turn)
end

if was_done() then -- the answer to an earlier sending was lost
  return {'done'}
end
if asked.token and not holds(asked.token) then
  return {'lost'}
end

local unparked = {}
if asked.change == 'append' then
  store_turn(2, asked.counts[1])
  touch()
elseif asked.change == 'remove' then
  if redis.call('ZREM', ITEMS, ARGV[2]) == 0 then
    return {'gone'}
  end
  count_items(-1, PLACE - #ARGV[2])
  redis.call('HSET', SESSION, 'updated', whole(microseconds))
  if session.exists then
    list()
  end
else
  local current = asked.token and read_turn(session.turn)
  local held = session
  local kept = current and redis.call('HGETALL', SESSION)
  local existed = session.exists
  local labels = redis.call('HMGET', SESSION, 'created', 'title', 'metadata')
  unparked = forget()
  if not current then
    wake_next()
  end
  if current then
    redis.call('HSET', SESSION, unpack(kept))
    redis.call('HDEL', SESSION, 'created', 'title', 'metadata', 'opened', 'items', 'bytes')
    redis.call('HSET', SESSION, 'turns', 1)
    session = held
    session.exists = false
    current.parks, current.aliases = {}, nil
    if current.key then
      redis.call('HSET', IDEMPOTENCY, current.key, session.turn)
    end
  end
  if asked.change == 'replace' and existed then
    for at, name in ipairs({'created', 'title', 'metadata'}) do
      if labels[at] then
        redis.call('HSET', SESSION, name, labels[at])
      end
    end
  end
  if asked.change == 'replace' then
    local first = 2
    for _, count in ipairs(asked.counts) do
      if current then
        put_items(session.turn, 0, first - 2, first, count)
      else
        store_turn(first, count)
      end
      first = first + count
    end
    if current then
      current.runs['0'] = {state = 'running'}
    end
    touch()
  end
  if current then
    write_turn(session.turn, current)
  end
end
remember()
refresh()
return {'done', unpack(unparked)}
