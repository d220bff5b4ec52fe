-- Deletes the session, or only where it is idle and nobody holds it. Returns whether anybody could
-- see it, and the states that are parked in it no more.
if was_done() then -- the answer to an earlier sending was lost
  return {1}
end
local updated = tonumber(redis.call('HGET', SESSION, 'updated') or 0)
if asked.idle_since and (not session.exists or is_held() or updated > asked.idle_since) then
  return {0}
end
local existed = session.exists and 1 or 0
local unparked = forget()
wake_next()
remember()
return {existed, unpack(unparked)}
