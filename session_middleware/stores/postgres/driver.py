"""The errors of asyncpg and the server, as errors of this package.

Nothing is sent from here. A message names what to do next; it never holds a statement, an item or
a password: of what the server says, only the text of an error is shown.
"""

from __future__ import annotations

import asyncpg

from session_middleware.errors import MemoryUnavailable, SessionMemoryError, UnsupportedSchema
from session_middleware.stores.passwords import without_password
from session_middleware.stores.postgres.writes import OTHER_ITEMS

_TRIED_AGAIN = (  # rolled back by the server, or never begun
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
)
_LOST = (  # the connection is of no more use, and whether the statement took effect is not known
    "08000",  # connection_exception, and its kinds
    "08003",
    "08006",
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P05",  # idle_session_timeout
    "25P03",  # idle_in_transaction_session_timeout
)
_NOT_NOW = (  # the server takes no connection, or no write, at this moment
    "08001",
    "08004",
    "25006",  # read_only_sql_transaction
    "53300",  # too_many_connections
    "57P03",  # cannot_connect_now
)

_MISSING = ("3F000", "42883", "42P01", "42704")
"""A schema, function, table or type that is not there."""

RACES = ("23505", "42P06", "42P07", "42710", "42723", "40001", "40P01", "XX000")
"""What creating the same tables in several processes at once raises, in all but one of them."""


def sqlstate(error: BaseException) -> str:
    """The server's code for the error; empty where the server did not raise it."""
    return getattr(error, "sqlstate", None) or ""


def was_rolled_back(error: BaseException) -> bool:
    """Whether the statement did nothing and may simply be sent again."""
    return sqlstate(error) in _TRIED_AGAIN


def breaks_connection(error: BaseException) -> bool:
    """Whether another connection may do better."""
    if isinstance(error, asyncpg.PostgresError):
        return sqlstate(error) in _LOST + _NOT_NOW or isinstance(
            error, asyncpg.PostgresConnectionError
        )
    # InterfaceError: asyncpg's own, of a connection that is closed.
    return isinstance(
        error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, EOFError)
    )


def leaves_in_doubt(error: BaseException) -> bool:
    """Whether the connection is of no more use after this error of a statement."""
    answered = isinstance(error, (asyncpg.PostgresError, ValueError, TypeError))
    return not answered or breaks_connection(error)


def as_memory_error(error: BaseException, where: str) -> Exception | None:
    """The error to raise from this one; None for one that is not the storage's."""
    if isinstance(error, SessionMemoryError):
        return None
    if isinstance(error, TimeoutError):
        return MemoryUnavailable(
            f"{where} did not answer in time: look at its load and its locks, or raise "
            "operation_timeout"
        )
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return _of_standby(where)
    if isinstance(error, asyncpg.PostgresError):
        return _of_server(error, where)
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, EOFError)):
        return MemoryUnavailable(
            f"{where} cannot be reached ({_short(error)}): see that the server runs and that the "
            "URL is right"
        )
    return None


def _of_server(error: asyncpg.PostgresError, where: str) -> Exception:
    code = sqlstate(error)
    if code == OTHER_ITEMS:
        return ValueError(_short(error))
    if code in _MISSING:
        return UnsupportedSchema(
            f"{where} lacks a table or function of this package ({_short(error)}): open the memory "
            "with migrate=True, or run the SQL of 'session-middleware schema'"
        )
    if code == "25006":
        return _of_standby(where)
    if code == "42501":
        return MemoryUnavailable(
            f"{where} refused what this user may not do ({_short(error)}): grant it, or let "
            "somebody else run the SQL of 'session-middleware schema' and open with migrate=False"
        )
    if code.startswith("28"):
        return MemoryUnavailable(
            f"{where} refused the user or password ({_short(error)}): correct the URL"
        )
    return MemoryUnavailable(f"{where} failed ({code or type(error).__name__}: {_short(error)})")


def _of_standby(where: str) -> MemoryUnavailable:
    return MemoryUnavailable(
        f"{where} is a read-only standby, and sessions are kept on the primary: name the "
        "primary in the URL, or all hosts of the cluster"
    )


def _short(error: BaseException) -> str:
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
