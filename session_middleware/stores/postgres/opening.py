"""Opening a database for a memory, and closing it. asyncpg is imported here, and not before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from session_middleware import _background
from session_middleware.errors import MissingExtra
from session_middleware.stores.postgres.names import Names
from session_middleware.stores.postgres.url import Database

if TYPE_CHECKING:
    from session_middleware.stores.postgres.connection import Server
    from session_middleware.stores.postgres.listener import Listener


def open_server(
    database: Database | None, pool: Any, names: Names, options: Mapping[str, Any]
) -> tuple[Server, Listener | None]:
    """The database behind a memory, and who listens there; asyncpg is imported here first.

    Raises:
        MissingExtra: asyncpg is not installed.
    """
    try:
        from session_middleware.stores.postgres.connection import Server
        from session_middleware.stores.postgres.listener import Listener
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise MissingExtra(
            "PostgresSessionMemory needs asyncpg: pip install 'session-middleware[postgres]'"
        ) from error
    server = Server(database, pool, names, options)
    # In a transaction pool a connection listens for as long as a transaction, which is of no use.
    return server, None if options["pgbouncer"] else Listener(server)


async def close(server: Server, listener: Listener | None) -> None:
    """Close every connection; from any loop."""
    if listener is not None:
        await listener.close()
    await server.close()


def abandon(server: Server, listener: Listener | None) -> None:
    """Close every connection some time: the memory is gone."""
    if server.opened:
        _background.submit(close(server, listener))
