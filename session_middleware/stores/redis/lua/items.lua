-- The newest items of the session, of a turn or of a run of it, oldest first.
local from, to = '-', '+'
if asked.turn then
  from, to = turn_range(asked.turn)
  if asked.run then
    from, to = run_range(asked.turn, asked.run)
  end
end
if not asked.limit then
  return redis.call('ZRANGEBYLEX', ITEMS, from, to)
end
local newest = redis.call('ZREVRANGEBYLEX', ITEMS, to, from, 'LIMIT', 0, asked.limit)
local members = {}
for at = #newest, 1, -1 do
  table.insert(members, newest[at])
end
return members
