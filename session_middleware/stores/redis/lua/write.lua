-- Stores items of a turn, and its end where that is given: all of it or nothing. ARGV[2] is the
-- record of the end, ARGV[3] the output text, as JSON.
local FIRST = 4

local function is_stored(new, first)
  for at = 0, new.count - 1 do
    if not redis.call('ZSCORE', ITEMS, place(asked.turn, new.run, new.position + at) .. ARGV[first + at]) then
      return false
    end
  end
  return new.count > 0 and not new.instead
end

if not holds(asked.token) then
  -- An earlier sending may have done it, with its answer lost and the session taken over since.
  local turn = read_turn(asked.turn)
  if turn and asked['end'] then
    return {turn.nonce == asked.nonce and 'done' or 'lost'}
  end
  if asked['end'] and was_done() then
    return {'done'}
  end
  local first, stored = FIRST, turn ~= nil and #asked.items > 0
  for _, new in ipairs(asked.items) do
    stored = stored and is_stored(new, first)
    first = first + new.count
  end
  return {stored and 'done' or 'lost'}
end

local turn = read_turn(session.turn)
local first, any, withdraws = FIRST, false, false
for _, new in ipairs(asked.items) do
  local from, to = run_range(session.turn, new.run, new.position)
  if not new.instead and redis.call('ZLEXCOUNT', ITEMS, from, to) > 0 then
    for position = 0, new.count - 1 do
      local here = place(session.turn, new.run, new.position + position)
      local stored = redis.call('ZRANGEBYLEX', ITEMS, '[' .. here, '(' .. here:sub(1, -2) .. '!')[1]
      if stored and stored ~= here .. ARGV[first + position] then
        return {'conflict', new.run, new.position + position}
      end
    end
  end
  first = first + new.count
  any = any or new.count > 0
  withdraws = withdraws or (new.instead and new.count == 0)
end

first = FIRST
for _, new in ipairs(asked.items) do
  local run = turn.runs[tostring(new.run)] or {state = 'running'}
  run.input = run.input or new.input
  turn.runs[tostring(new.run)] = run
  if new.instead then
    drop_items(run_range(session.turn, new.run))
  end
  put_items(session.turn, new.run, new.position, first, new.count)
  first = first + new.count
end
local words = ARGV[3] ~= ''
if any or words then
  touch()
end

local how = asked['end']
if how then
  for run, state in pairs(how.runs) do
    local stored = turn.runs[run] or {}
    stored.state = state
    turn.runs[run] = stored
  end
  if how.unlisted then
    drop_turn(session.turn, turn)
    remember()
    let_go()
    return {'done'}
  end
  if how.discard then
    drop_items(turn_range(session.turn))
    unpark_turn(turn)
  end
  local function park(identity)
    turn.parks[identity] = true
    redis.call('HSET', PARKS, identity, session.turn)
    if PARKED then
      redis.call('ZADD', PARKED, 0, identity .. '\n' .. asked.id)
    end
  end
  local aliases = turn.aliases or {}
  local function first_name(identity)
    return aliases[identity] or identity
  end
  for _, pair in ipairs(how.aliases) do
    local alias, identity = pair[1], pair[2]
    if turn.parks[identity] ~= nil and turn.parks[alias] == nil then
      park(alias)
      aliases[alias] = first_name(identity)
    end
  end
  for _, settled in ipairs(how.settles) do
    for identity in pairs(turn.parks) do
      if first_name(identity) == first_name(settled) then
        turn.parks[identity] = false
        redis.call('HDEL', STATES, identity)
      end
    end
  end
  for _, identity in ipairs(how.park) do
    park(identity)
    aliases[identity] = nil
    redis.call('HSET', STATES, identity, ARGV[first])
    first = first + 1
    turn.parked_at = whole(microseconds)
  end
  turn.aliases = next(aliases) and aliases or nil
  if how.settles_journal then
    drop_calls(session.turn)
    put_calls(session.turn, how.journal, first)
  end
  local output = words and ARGV[3] or nil
  turn.state = how.state
  for _, open in pairs(turn.parks) do
    if open and how.state == 'completed' then
      turn.state, output = 'awaiting_approval', nil
    end
  end
  if turn.trace and turn.trace ~= how.trace then
    turn.earlier = turn.earlier or {}
    table.insert(turn.earlier, turn.trace)
  end
  turn.ended_at, turn.trace, turn.nonce = how.ended_at, how.trace, asked.nonce
  for _, id in ipairs(how.traces) do
    turn.traces = turn.traces or {}
    table.insert(turn.traces, id)
    trace(id, session.turn)
  end
  if how.trace then
    trace(how.trace, session.turn)
  end
  redis.call('HSET', TURNS, session.turn .. ':end', ARGV[2])
  if output then
    redis.call('HSET', TURNS, session.turn .. ':output', output)
  else
    redis.call('HDEL', TURNS, session.turn .. ':output')
  end
  let_go()
end
if (withdraws or (how and how.discard)) and not words and session.opened == asked.token
  and redis.call('EXISTS', ITEMS) == 0 then
  hide()
end
write_turn(session.turn, turn)
refresh()
return {'done'}
