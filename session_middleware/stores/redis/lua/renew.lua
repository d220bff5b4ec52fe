-- Gives a lease its whole length again; returns whether it is still one.
if not holds(asked.token) then
  return 0
end
redis.call('HSET', SESSION, 'until', whole(now + asked.lease))
refresh()
return 1
