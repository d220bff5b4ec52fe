"""A web page that shows sessions live, and exactly what the model was given in each turn.

``session-middleware inspect`` serves it on this machine; ``app`` makes the same page an ASGI app
that can be mounted behind a login. It needs the extra ``inspect``.
"""

from session_middleware.inspect.app import app
from session_middleware.inspect.serving import serve

__all__ = ["app", "serve"]
