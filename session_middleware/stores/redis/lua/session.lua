-- What every script begins with: the keys of one session, its lease and its items.
--
-- The keys of a session are always the same and lie under one hash tag, so a cluster keeps them on
-- one server. ARGV[1] is a JSON object of what is asked, the items follow as texts. The server's
-- clock decides leases. Nothing here knows a rule's words: a script returns an outcome and its facts.
local SESSION, TURNS, ITEMS, PARKS, IDEMPOTENCY, DONE, GONE, CALLS, LINE, STATES =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
-- Indexes over all sessions: given only where one server has every key.
local RECENT, CREATED, NAMES, PARKED, WAITING, TRACES, FENCE =
    KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17]

local asked = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local microseconds = clock[1] * 1000000 + clock[2]
local now = math.floor(microseconds / 1000)

-- A call that may be sent twice has a nonce, which is remembered for this long.
local REMEMBER_CALLS = 300000
local REMEMBER_GONE = 90 * 86400000
-- More than the clocks of two servers may differ: a fence of a new primary is above the old one's.
local EPOCH_STEP = 60000000

local function whole(number)
  return string.format('%.0f', number)
end

-- --- the session ------------------------------------------------------------------------------

local session = {}
do
  local got = redis.call('HMGET', SESSION, 'token', 'turn', 'until', 'newest', 'fence', 'epoch',
    'created', 'opened')
  session.token = got[1] or nil
  session.turn = tonumber(got[2] or 0)
  session.expires = tonumber(got[3] or 0)
  session.newest = tonumber(got[4] or 0)
  session.fence = tonumber(got[5] or 0)
  session.epoch = got[6] or nil
  session.exists = got[7] and true or false
  session.opened = got[8] or nil
end

local function is_held()
  return session.token ~= nil and now < session.expires
end

-- The replication id of this server, which changes when it starts and when it is promoted, and
-- whether it was promoted. Empty where the user may not ask for it.
local function server_epoch()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then
    return '', false
  end
  local before = string.match(info, 'master_replid2:(%w+)')
  return string.match(info, 'master_replid:(%w+)') or '', before ~= nil and before ~= string.rep('0', 40)
end

-- Whether the lease with this token is good. One that merely expired is; but where the server is
-- another one than the lease was granted by, a later holder may have been forgotten with it.
local function holds(token)
  if session.token ~= token then
    return false
  end
  local epoch, promoted = server_epoch()
  if session.epoch ~= epoch then
    if promoted or now >= session.expires then
      return false
    end
    redis.call('HSET', SESSION, 'epoch', epoch)
  end
  return true
end

-- A number that grows with every holder, also when the session was deleted in between, as the
-- clock stands above the counter. Fences of other memories, whose sessions were copied to this one,
-- are below asked.floor, or FENCE where that is given.
local function next_fence(epoch)
  local last = math.max(session.fence, tonumber(redis.call('HGET', GONE, 'fence') or 0),
    asked.floor or 0)
  local fence = math.max(last + 1, microseconds)
  if session.epoch and session.epoch ~= epoch then
    fence = fence + EPOCH_STEP
  end
  local floor = FENCE and tonumber(redis.call('GET', FENCE) or 0) or 0
  if floor >= fence then
    fence = floor + 1
    redis.call('SET', FENCE, whole(fence))
  end
  return fence
end

-- --- what is known of all sessions --------------------------------------------------------------

local function list()
  if RECENT then
    local dates = redis.call('HMGET', SESSION, 'created', 'updated')
    redis.call('ZADD', RECENT, dates[2], asked.id)
    redis.call('ZADD', CREATED, dates[1], asked.id)
    redis.call('ZADD', NAMES, 0, asked.id)
  end
end

local function unlist()
  if RECENT then
    redis.call('ZREM', RECENT, asked.id)
    redis.call('ZREM', CREATED, asked.id)
    redis.call('ZREM', NAMES, asked.id)
  end
end

local function member(name, number)
  return name .. '\n' .. asked.id .. '\n' .. whole(number)
end

local function trace(id, number)
  if TRACES then
    redis.call('ZADD', TRACES, 0, member(id, number))
  end
end

-- Every trace that the turn is found by.
local function traces_of(turn)
  local found = {}
  for _, ids in ipairs({turn.traces or {}, turn.earlier or {}}) do
    for _, id in ipairs(ids) do
      table.insert(found, id)
    end
  end
  if turn.trace then
    table.insert(found, turn.trace)
  end
  return found
end

-- The names under which runs of the turn wait for approval.
local function waiting_in(turn)
  local found = {}
  for identity, open in pairs(turn.parks) do
    if open and not (turn.aliases and turn.aliases[identity]) then
      table.insert(found, identity)
    end
  end
  return found
end

local function list_waiting(number, turn)
  local waits = #waiting_in(turn) > 0
  if not waits and not turn.waits then
    return
  end
  turn.waits = waits or nil
  if WAITING and waits then
    redis.call('ZADD', WAITING, turn.parked_at or whole(microseconds), asked.id .. '\n' .. whole(number))
  elseif WAITING then
    redis.call('ZREM', WAITING, asked.id .. '\n' .. whole(number))
  end
end

-- The session can be seen from now on; where the writes of a lease alone make it so, its token is
-- noted.
local function touch()
  if not asked.token then
    redis.call('HDEL', SESSION, 'opened')
  elseif not session.exists then
    session.opened = asked.token
    redis.call('HSET', SESSION, 'opened', asked.token)
  end
  redis.call('HSETNX', SESSION, 'created', whole(microseconds))
  redis.call('HSET', SESSION, 'updated', whole(microseconds))
  if not session.exists then
    list()
  elseif RECENT then
    redis.call('ZADD', RECENT, whole(microseconds), asked.id)
  end
  session.exists = true
end

-- The session can be seen no more.
local function hide()
  redis.call('HDEL', SESSION, 'opened', 'created', 'title', 'metadata')
  session.exists = false
  unlist()
end

-- The session's keys live for another ttl; where there is none, they live for ever.
local function refresh()
  if asked.ttl then
    local at = whole(now + asked.ttl)
    for _, key in ipairs({SESSION, TURNS, ITEMS, PARKS, IDEMPOTENCY, CALLS, STATES}) do
      redis.call('PEXPIREAT', key, at)
    end
  end
end

-- --- calls that were sent twice ----------------------------------------------------------------

local function was_done()
  return redis.call('ZSCORE', DONE, asked.nonce) and true or false
end

local function remember()
  redis.call('ZADD', DONE, whole(now), asked.nonce)
  redis.call('ZREMRANGEBYSCORE', DONE, '-inf', whole(now - REMEMBER_CALLS))
  redis.call('PEXPIRE', DONE, REMEMBER_CALLS)
end

-- --- turns -------------------------------------------------------------------------------------

local function read_turn(number)
  local text = redis.call('HGET', TURNS, number)
  return text and cjson.decode(text) or nil
end

local function write_turn(number, turn)
  list_waiting(number, turn)
  redis.call('HSET', TURNS, number, cjson.encode(turn))
end

local function begin_turn(state, started_at)
  session.newest = session.newest + 1
  redis.call('HSET', SESSION, 'newest', session.newest)
  redis.call('HINCRBY', SESSION, 'turns', 1)
  return session.newest, {state = state, started_at = started_at, runs = {}, parks = {}}
end

-- --- the line of a busy session -----------------------------------------------------------------
-- A field of LINE is a ticket, with the moment at which it got its place and that at which it was
-- shown last. A ticket that was not shown lately does not count.

local TICKET_COUNTS, TICKET_STAYS = asked.ticket_seconds, 60000

local function places()
  local found, got = {}, redis.call('HGETALL', LINE)
  for at = 1, #got, 2 do
    local place, shown = string.match(got[at + 1], '(%d+) (%d+)')
    found[got[at]] = {place = tonumber(place), shown = tonumber(shown)}
  end
  return found
end

-- Whether others wait who came before the ticket; one without a place comes last.
local function others_before(ticket)
  local found = places()
  local own = ticket and found[ticket] and found[ticket].place or math.huge
  for other, at in pairs(found) do
    if other ~= ticket and at.place < own and now - at.shown <= TICKET_COUNTS then
      return true
    end
  end
  return false
end

local function show_ticket(ticket)
  local found = places()
  local place = found[ticket] and found[ticket].place or microseconds
  redis.call('HSET', LINE, ticket, whole(place) .. ' ' .. whole(now))
  for other, at in pairs(found) do
    if now - at.shown > TICKET_STAYS then
      redis.call('HDEL', LINE, other)
    end
  end
  redis.call('PEXPIRE', LINE, TICKET_STAYS)
end

-- Tells whoever is first in the line, in whatever process, that the session is free.
local function wake_next()
  if redis.call('EXISTS', LINE) == 0 then
    return
  end
  local first, ticket = math.huge, nil
  for other, at in pairs(places()) do
    if at.place < first and now - at.shown <= TICKET_COUNTS then
      first, ticket = at.place, other
    end
  end
  if ticket then
    redis.call('PUBLISH', asked.channel, ticket)
  end
end

local function abandon(at)
  local turn = read_turn(session.turn)
  if turn and turn.state == 'running' then
    turn.state, turn.ended_at = 'abandoned', at
    write_turn(session.turn, turn)
  end
end

local function let_go()
  redis.call('HDEL', SESSION, 'token')
  session.token = nil
  wake_next()
end

-- --- items -------------------------------------------------------------------------------------
-- A member is "turn/run/position text" with numbers of a fixed width, so that the order of the
-- members is that of the items, and a turn, a run or a position is a range.

local function turn_range(turn)
  local start = string.format('%010d', turn)
  return '[' .. start .. '/', '(' .. start .. '0'
end

local function run_range(turn, run, position)
  local start = string.format('%010d/%06d', turn, run)
  return '[' .. start .. string.format('/%08d ', position or 0), '(' .. start .. '0'
end

local function place(turn, run, position)
  return string.format('%010d/%06d/%08d ', turn, run, position)
end

local PLACE = 27

local function count_items(number, bytes)
  if number ~= 0 then
    redis.call('HINCRBY', SESSION, 'items', number)
    redis.call('HINCRBY', SESSION, 'bytes', bytes)
  end
end

-- Turns that may hold a compaction item, newest first: so many as were ever looked for, and more.
local MOST_COMPACTED = 16

local function compacted_turns()
  return cjson.decode(redis.call('HGET', SESSION, 'compacted') or '[]')
end

local function note_compaction(turn, text)
  if not text:find(COMPACTION, 1, true) then
    return
  end
  local turns = {turn}
  for _, other in ipairs(compacted_turns()) do
    if other ~= turn and #turns < MOST_COMPACTED then
      table.insert(turns, other)
    end
  end
  table.sort(turns, function(a, b) return a > b end)
  redis.call('HSET', SESSION, 'compacted', cjson.encode(turns))
end

local function put_items(turn, run, position, first, count)
  local added, bytes = 0, 0
  for at = 0, count - 1 do
    local text = ARGV[first + at]
    if redis.call('ZADD', ITEMS, 0, place(turn, run, position + at) .. text) == 1 then
      added, bytes = added + 1, bytes + #text
      note_compaction(turn, text)
    end
  end
  count_items(added, bytes)
end

local function drop_items(from, to)
  local bytes, members = 0, redis.call('ZRANGEBYLEX', ITEMS, from, to)
  for _, member in ipairs(members) do
    bytes = bytes + #member - PLACE
  end
  redis.call('ZREMRANGEBYLEX', ITEMS, from, to)
  count_items(-#members, -bytes)
  return members
end

-- Members under another turn or run, in the same order from position 0 or at their own.
local function move_items(members, turn, run)
  for at, member in ipairs(members) do
    local to = run and place(turn, run, at - 1) or string.format('%010d', turn) .. member:sub(11, PLACE)
    redis.call('ZADD', ITEMS, 0, to .. member:sub(PLACE + 1))
    count_items(1, #member - PLACE)
    note_compaction(turn, member)
  end
end

local function turn_of(member)
  return tonumber(member:sub(1, 10))
end

-- --- calls of tools ------------------------------------------------------------------------------
-- The journal: members as those of items, one for each place.

local function put_calls(turn, entries, first)
  for at, entry in ipairs(entries) do
    local here = place(turn, entry.run, entry.place)
    redis.call('ZREMRANGEBYLEX', CALLS, '[' .. here, '(' .. here:sub(1, -2) .. '!')
    redis.call('ZADD', CALLS, 0, here .. ARGV[first + at - 1])
  end
end

local function calls_of(turn)
  local from, to = turn_range(turn)
  return redis.call('ZRANGEBYLEX', CALLS, from, to)
end

local function drop_calls(turn)
  redis.call('ZREMRANGEBYLEX', CALLS, turn_range(turn))
end

-- --- forgetting --------------------------------------------------------------------------------

-- These runs are parked no more, and can never be resumed: of each a digest stays for a while.
local function unpark(identities)
  local gone = redis.call('HGETALL', GONE)
  for at = 1, #gone, 2 do
    if gone[at] ~= 'fence' and now - tonumber(gone[at + 1]) > REMEMBER_GONE then
      redis.call('HDEL', GONE, gone[at])
    end
  end
  for _, identity in ipairs(identities) do
    redis.call('HDEL', PARKS, identity)
    redis.call('HDEL', STATES, identity)
    redis.call('HSET', GONE, redis.sha1hex(identity), whole(now))
    if PARKED then
      redis.call('ZREM', PARKED, identity .. '\n' .. asked.id)
    end
  end
  if session.fence > 0 then
    redis.call('HSET', GONE, 'fence', whole(session.fence))
  end
  redis.call('PEXPIRE', GONE, REMEMBER_GONE)
end

local function unpark_turn(turn)
  local identities = {}
  for identity in pairs(turn.parks) do
    table.insert(identities, identity)
  end
  turn.parks, turn.aliases = {}, nil
  unpark(identities)
end

-- The turn held its session only for a moment, and leaves nothing.
local function drop_turn(number, turn)
  for _, id in ipairs(traces_of(turn)) do
    if TRACES then
      redis.call('ZREM', TRACES, member(id, number))
    end
  end
  redis.call('HDEL', TURNS, number, number .. ':end', number .. ':output')
  redis.call('HINCRBY', SESSION, 'turns', -1)
  if number == session.newest then
    redis.call('HINCRBY', SESSION, 'newest', -1)
  end
end

-- Removes all of the session but a tombstone without words: its last fence, and digests of the
-- states that were parked in it. Returns the names of those.
local function forget()
  local parked = redis.call('HKEYS', PARKS)
  unpark(parked)
  if TRACES then
    local got = redis.call('HGETALL', TURNS)
    for at = 1, #got, 2 do
      local number = tonumber(got[at])
      local turn = number and cjson.decode(got[at + 1]) or {parks = {}}
      for _, id in ipairs(traces_of(turn)) do
        redis.call('ZREM', TRACES, member(id, number))
      end
      if turn.waits then
        redis.call('ZREM', WAITING, asked.id .. '\n' .. whole(number))
      end
    end
  end
  redis.call('DEL', SESSION, TURNS, ITEMS, PARKS, IDEMPOTENCY, CALLS, STATES)
  unlist()
  session = {turn = 0, expires = 0, newest = 0, fence = session.fence, exists = false}
  return parked
end
