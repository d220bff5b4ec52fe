-- The newest turn as records tell it, its calls, and the newest items but for those that are too
-- long to be looked at.
local number = session.newest
while number > 0 do
  local got = redis.call('HMGET', TURNS, number, number .. ':end', number .. ':output')
  if got[1] then
    -- A turn that runs under no lease has died, though it may still renew it and go on.
    local dead = not (is_held() and session.turn == number)
    local texts = {}
    for _, member in ipairs(redis.call('ZRANGE', ITEMS, -asked.items, -1)) do
      if #member - PLACE <= asked.longest then
        table.insert(texts, member:sub(PLACE + 1))
      end
    end
    return {{number, got[1], got[2], got[3], dead and 1 or 0}, calls_of(number), texts}
  end
  number = number - 1
end
return {}
