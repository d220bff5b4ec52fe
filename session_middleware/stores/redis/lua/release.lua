-- Takes the session from whoever holds it, or only from the holder with this token.
if not session.token or (asked.token and session.token ~= asked.token) then
  return {'free'}
end
abandon(asked.at)
let_go()
return {'done'}
