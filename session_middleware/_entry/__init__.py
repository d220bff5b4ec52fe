"""How a call reaches its turn: arguments, shapes, interception, the view of a session."""
