"""The page on this machine: an address with a token, and a server until Ctrl-C."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from session_middleware.errors import InvalidOption
from session_middleware.inspect.app import Memory, app
from session_middleware.inspect.guard import Authorize, is_loopback


def serve(
    memory: Memory,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    allow_changes: bool = False,
    trace_url: str | None = None,
    authorize: Authorize | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        memory: the memory to show.
        host: the address to listen on; one that others can reach needs ``authorize``.
        port: 0: any that is free.
        allow_changes: let people approve and reject calls that wait.
        trace_url: the address of a trace in a tracing tool, with ``{trace_id}`` in it.
        authorize: as for ``app``; without it the address that is announced has a token.
        announce: told the address, once the server listens.

    Raises:
        InvalidOption: others could reach the address, and there is no ``authorize``.
    """
    import uvicorn

    if not is_loopback(host) and authorize is None:
        raise InvalidOption(
            f"host must be 127.0.0.1, got {host!r}: others can reach that one, so mount "
            "session_middleware.inspect.app(memory, authorize=...) behind your login instead"
        )
    token = None if authorize is not None else secrets.token_urlsafe(24)
    page = app(
        memory, authorize=authorize, allow_changes=allow_changes, trace_url=trace_url, token=token
    )
    config = uvicorn.Config(page, host=host, port=port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    listening.listen(config.backlog)  # whoever is told the address may come at once
    number = listening.getsockname()[1]
    named = f"[{host}]" if ":" in host else host
    announce(f"http://{named}:{number}/" + (f"?token={token}" if token else ""))
    server.run(sockets=[listening])
