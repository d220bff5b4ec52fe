-- How far back a window reaches: whole turns, counted without the runs that are hidden.

local hidden_turn = asked.hide and asked.hide.turn
local is_hidden, hidden = {}, 0
for _, run in ipairs(asked.hide and asked.hide.runs or {}) do
  is_hidden[run] = true
  hidden = hidden + redis.call('ZLEXCOUNT', ITEMS, run_range(hidden_turn, run))
end

local function newest_below(bound)
  return redis.call('ZREVRANGEBYLEX', ITEMS, bound, '-', 'LIMIT', 0, 1)[1]
end

-- The newest turn below the bound that has an item to be seen.
local function visible_turn_below(bound)
  while true do
    local member = newest_below(bound)
    if not member then
      return nil
    end
    local turn = turn_of(member)
    if turn ~= hidden_turn or not is_hidden[tonumber(member:sub(12, 17))] then
      return turn
    end
    bound = '(' .. member:sub(1, 18)
  end
end

local function nth_newest_turn(nth)
  local turn = visible_turn_below('+')
  while turn and nth > 1 do
    turn = visible_turn_below('(' .. string.format('%010d/', turn))
    nth = nth - 1
  end
  return turn
end

local function turn_of_nth_newest_item(nth)
  local offset = nth - 1
  if hidden > 0 then
    local from, to = turn_range(hidden_turn)
    local of_turn = redis.call('ZLEXCOUNT', ITEMS, from, to)
    local newer = redis.call('ZLEXCOUNT', ITEMS, '[' .. to:sub(2), '+')
    if offset >= newer + of_turn - hidden then
      offset = offset + hidden
    elseif offset >= newer then
      return hidden_turn
    end
  end
  local member = redis.call('ZREVRANGE', ITEMS, offset, offset)[1]
  return member and turn_of(member) or nil
end

-- The number of the first turn that the window keeps; nil: none.
local function first_turn(window)
  if not window then
    return 0
  end
  if window.n == 0 then
    return nil
  end
  if window.step then
    local oldest = nth_newest_turn(window.n)
    return oldest and oldest - oldest % window.step or 0
  end
  local beyond = turn_of_nth_newest_item(window.n + 1)
  if not beyond then
    return 0
  end
  return beyond == turn_of_nth_newest_item(1) and beyond or beyond + 1
end

-- The items of the newest older turns that may hold a compaction item.
local function compacted_before(first)
  local members, found = {}, 0
  for _, turn in ipairs(compacted_turns()) do
    if turn < first and found < 3 then
      local from, to = turn_range(turn)
      local own = redis.call('ZRANGEBYLEX', ITEMS, from, to)
      found = found + (#own > 0 and 1 or 0)
      for at = #own, 1, -1 do
        table.insert(members, 1, own[at])
      end
    end
  end
  return members
end

-- Whether nothing older than the window is left out, the items of the window, hidden ones
-- included, and those of older turns that may hold the newest compaction item; nil where there are
-- more than so many in the window.
local function read_window(window, most)
  local first = first_turn(window)
  local from = first and string.format('[%010d/', first) or '+'
  if most and first and redis.call('ZLEXCOUNT', ITEMS, from, '+') > most then
    return nil
  end
  local older = redis.call('ZLEXCOUNT', ITEMS, '-', first and '(' .. from:sub(2) or '+')
  if hidden_turn and (not first or hidden_turn < first) then
    older = older - hidden
  end
  if not first then
    return older == 0 and 1 or 0, {}, {}
  end
  return older == 0 and 1 or 0, redis.call('ZRANGEBYLEX', ITEMS, from, '+'),
    older > 0 and compacted_before(first) or {}
end
