-- Keeps entries of the turn's journal, in place of those with the same run and place.
if not holds(asked.token) then
  return {'lost'}
end
put_calls(session.turn, asked.entries, 2)
refresh()
return {'done'}
