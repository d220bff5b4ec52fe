"""How a URL names a PostgreSQL database, and what the options say. Imports no driver.

Our own options may be parameters of the URL; every other parameter is asyncpg's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from session_middleware.errors import InvalidMemoryUrl, InvalidOption
from session_middleware.stores.numbers import whole_number
from session_middleware.stores.passwords import without_password
from session_middleware.stores.urls import Address, options_of, truth

if TYPE_CHECKING:
    from session_middleware.stores.postgres.memory import PostgresSessionMemory

EXAMPLES = ("'postgresql://user@host/database'",)

OPTIONS: dict[str, Callable[[str], Any]] = {
    "lease": float,
    "operation_timeout": float,
    "schema": str,
    "table_prefix": str,
    "migrate": truth,
    "pgbouncer": truth,
    "min_size": int,
    "max_size": int,
    "ttl": float,
}

DEFAULTS: dict[str, Any] = {
    "lease": 30.0,
    "operation_timeout": 10.0,
    "schema": "public",
    "table_prefix": "session_middleware_",
    "migrate": True,
    "pgbouncer": False,
    "min_size": 1,
    "max_size": 10,
    "ttl": None,
}


def address(url: str, options: Mapping[str, Any]) -> Address:
    """The database that ``postgresql://user@host/database`` names."""
    database = Database.of(url)
    made = options_of(_only(url, ours=True), options, OPTIONS, shown=without_password(url))

    def open_database() -> PostgresSessionMemory:
        from session_middleware.stores.postgres.memory import PostgresSessionMemory

        return PostgresSessionMemory(database.url, **made)

    return Address(("postgresql", database.url, *sorted(made.items())), open_database)


@dataclass(frozen=True, slots=True)
class Database:
    """A database as a URL names it.

    Attributes:
        url: as asyncpg takes it, without our options.
        place: which database it is, without user, password and settings.
        shown: what messages call it.
    """

    url: str
    place: tuple[str, str, str]
    shown: str

    @classmethod
    def of(cls, url: object) -> Database:
        """Read a URL.

        Raises:
            InvalidMemoryUrl: it is not one of PostgreSQL's.
        """
        shown = without_password(url) if isinstance(url, str) else type(url).__name__
        try:
            parts = urlsplit(_only(str(url), ours=False))
        except ValueError:  # it may show a part of the URL
            parts = urlsplit("")
        if not isinstance(url, str) or parts.scheme not in ("postgresql", "postgres"):
            raise InvalidMemoryUrl(
                f"the URL of a PostgreSQL memory must be such as {EXAMPLES[0]}, got {shown}"
            )
        query = dict(parse_qsl(parts.query))
        host = parts.netloc.rpartition("@")[2] or query.get("host", "localhost")
        name = parts.path.strip("/") or query.get("dbname", query.get("database", ""))
        shown = f"the database {name or '(of the user)'} at {host}"
        return cls(urlunsplit(parts), (host, query.get("port", ""), name), shown)


def settled(url: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, of which the URL may say those that are not given by keyword.

    Raises:
        InvalidOption: one is given both ways.
        InvalidMemoryUrl: one has a value of the wrong kind.
    """
    by_keyword = {name: value for name, value in given.items() if value != DEFAULTS[name]}
    made = (
        by_keyword
        if url is None
        else options_of(_only(url, ours=True), by_keyword, OPTIONS, shown=without_password(url))
    )
    return {**DEFAULTS, **made}


def each_host(url: str) -> list[str]:
    """A URL for each of the hosts that a URL names before its path."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if {"host", "port"} & dict(parse_qsl(parts.query)).keys():
        return [url]
    return [urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in hosts.split(",")]


def _only(url: str, *, ours: bool) -> str:
    """The URL with only our options as parameters, or only asyncpg's."""
    parts: SplitResult = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, text) for name, text in pairs if (name in OPTIONS) is ours]
    return urlunsplit(parts._replace(query=urlencode(kept)))


# --- values ----------------------------------------------------------------------------------


def check_sizes(least: object, most: object) -> None:
    """See that a pool can have from ``least`` to ``most`` connections."""
    lowest = whole_number("min_size", least, at_least=0)
    if lowest > whole_number("max_size", most, at_least=1):
        raise InvalidOption(f"min_size must be at most max_size ({most}), got {least}")
