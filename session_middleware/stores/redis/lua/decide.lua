-- Puts a state with a decision in place of the one that was read: 1, or 0 where another is there.
if was_done() then -- the answer to an earlier sending was lost
  return 1
end
if redis.call('HGET', STATES, asked.identity) ~= ARGV[2] then
  return 0
end
redis.call('HSET', STATES, asked.identity, ARGV[3])
remember()
return 1
