-- Acquires the session by the table in stores/rules.py, whose names of outcomes these are, or only
-- looks up (asked.look) whether the request's work was done before.

local function record(outcome, number, turn)
  local from, to = turn_range(number)
  local kept = redis.call('HMGET', TURNS, number .. ':end', number .. ':output')
  return {outcome, number, cjson.encode(turn), kept[1] or '', kept[2] or '',
    redis.call('ZRANGEBYLEX', ITEMS, from, to), whole(session.expires), whole(now)}
end

local function acquired(number, turn, fence, took_over, is_complete, read, compacted)
  local newest_run, carried = 0, {}
  for run in pairs(turn.runs) do
    newest_run = math.max(newest_run, tonumber(run))
  end
  local moved = {}
  if turn.begun == 'retry' then
    carried = turn.runs
    local from, to = turn_range(number)
    moved = redis.call('ZRANGEBYLEX', ITEMS, from, to)
  end
  return {turn.begun, number, whole(fence), newest_run + 1,
    asked.new and turn.begun == 'begin' and 1 or 0, cjson.encode(carried), moved,
    took_over or 0, redis.call('HGET', TURNS, number .. ':end') or '', calls_of(number),
    is_complete or -1, read or {}, compacted or {}}
end

if asked.token and session.token == asked.token then -- the answer to an earlier sending was lost
  local turn = read_turn(session.turn)
  return acquired(session.turn, turn, session.fence, turn.took_over)
end

local resumed, earlier
local turn
if asked.resume then
  local number = tonumber(redis.call('HGET', PARKS, asked.resume) or nil)
  if number then
    turn = read_turn(number)
    if not turn.parks[asked.resume] then
      return record('resumed', number, turn)
    end
    if is_held() and session.turn == number then
      return record('resuming', number, turn)
    end
    resumed = number
  elseif redis.call('HEXISTS', GONE, redis.sha1hex(asked.resume)) == 1 then
    return {'deleted'}
  elseif not asked.elsewhere then -- other sessions may have parked it, on other servers
    return {'elsewhere'}
  end
end
if not resumed and asked.key then
  local number = tonumber(redis.call('HGET', IDEMPOTENCY, asked.key) or nil)
  if number then
    turn = read_turn(number)
    if asked.input and turn.input and asked.input ~= turn.input then
      return record('other_input', number, turn)
    end
    if turn.state == 'running' and number == session.turn and is_held() then
      return record('in_progress', number, turn)
    end
    if turn.state == 'completed' then
      return record('done', number, turn)
    end
    local waits = turn.state == 'awaiting_approval'
    for _, open in pairs(turn.parks) do
      waits = waits or open
    end
    if waits then
      return record('awaiting_approval', number, turn)
    end
    earlier = number
  end
end
if asked.look then
  return {'begin'}
end
local line = not is_held() and redis.call('EXISTS', LINE) == 1 and others_before(asked.ticket)
if is_held() or line then
  if asked.ticket then
    show_ticket(asked.ticket)
  end
  if line then
    return {'busy'}
  end
  return record('busy', session.turn, read_turn(session.turn))
end

-- Everything is checked: from here on it is taken.
local took_over
if session.token and session.turn ~= earlier then
  took_over = session.turn
  abandon(asked.started_at)
end
local number
if resumed then
  number = resumed
  turn.state, turn.ended_at, turn.begun = 'running', nil, 'continue'
  if asked.trace and turn.trace and asked.trace ~= turn.trace then
    turn.earlier = turn.earlier or {}
    table.insert(turn.earlier, turn.trace)
  end
  turn.trace = asked.trace or turn.trace
else
  local old = turn
  number, turn = begin_turn('running', asked.started_at)
  turn.key, turn.input, turn.trace = asked.key, asked.input, asked.trace
  turn.begun = earlier and 'retry' or 'begin'
  if asked.key then
    redis.call('HSET', IDEMPOTENCY, asked.key, number)
  end
  if earlier then
    move_items(drop_items(turn_range(earlier)), number)
    turn.runs, turn.parks, turn.aliases = old.runs, old.parks, old.aliases
    turn.parked_at = old.parked_at
    for _, member in ipairs(calls_of(earlier)) do
      redis.call('ZADD', CALLS, 0, string.format('%010d', number) .. member:sub(11))
    end
    drop_calls(earlier)
    for identity in pairs(turn.parks) do
      redis.call('HSET', PARKS, identity, number)
    end
    old.runs, old.parks, old.aliases, old.state = {}, {}, nil, 'replaced'
    old.ended_at = old.ended_at or asked.started_at
    write_turn(earlier, old)
  end
end
if asked.ticket then
  redis.call('HDEL', LINE, asked.ticket)
end
local epoch = server_epoch()
local fence = next_fence(epoch)
redis.call('HSET', SESSION, 'token', asked.token, 'turn', number, 'until', whole(now + asked.lease),
  'fence', whole(fence), 'epoch', epoch)
local is_complete, read, compacted
if turn.begun == 'begin' and asked.read then
  is_complete, read, compacted = read_window(asked.read.window, asked.read.most)
end
if turn.begun == 'begin' and asked.new then
  local new = asked.new
  turn.runs[tostring(new.run)] = {state = 'running', input = new.input}
  put_items(number, new.run, new.position, 2, new.count)
  touch()
end
turn.took_over = took_over
if asked.trace then
  trace(asked.trace, number)
end
write_turn(number, turn)
refresh()
return acquired(number, turn, fence, took_over, is_complete, read, compacted)
