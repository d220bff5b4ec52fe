-- Lets a run take over the first items of a failed one in the same turn; the others go. Sent twice,
-- it finds nothing left to move.
if not holds(asked.token) then
  return {'lost'}
end
local turn = read_turn(session.turn)
local failed = turn.runs[tostring(asked.failed)]
if not failed then
  return {'done', 0}
end
local members = drop_items(run_range(session.turn, asked.failed))
while #members > asked.kept do
  table.remove(members)
end
move_items(members, session.turn, asked.run)
turn.runs[tostring(asked.run)] = {state = 'running', input = failed.input}
failed.state = 'replaced'
write_turn(session.turn, turn)
return {'done', asked.kept}
