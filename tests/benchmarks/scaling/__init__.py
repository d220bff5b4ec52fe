"""What a turn costs on a server, and a day's traffic on a million sessions."""
