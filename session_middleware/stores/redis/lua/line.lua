-- Whether the session may be had by this ticket; or withdraws the ticket.
if asked.withdraw then
  redis.call('HDEL', LINE, asked.ticket)
  if not is_held() then
    wake_next()
  end
  return 1
end
return (is_held() or others_before(asked.ticket)) and 0 or 1
