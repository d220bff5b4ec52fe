"""How a URL names a Redis or Valkey server. Imports no driver and opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from session_middleware.errors import InvalidMemoryUrl
from session_middleware.stores.passwords import without_password
from session_middleware.stores.urls import Address, options_of

if TYPE_CHECKING:
    from session_middleware.stores.redis.memory import RedisSessionMemory

EXAMPLES = (
    "'redis://localhost:6379/0' (valkey:// is the same)",
    "'rediss://user:password@host:6380/0' (TLS)",
)

_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
"""Our schemes, and what redis-py calls them."""

_PORT = 6379
_SENTINEL_PORT = 26379

OPTIONS: dict[str, Callable[[str], Any]] = {
    "lease": float,
    "operation_timeout": float,
    "key_prefix": str,
    "ttl": float,
    "replicas": int,
    "max_connections": int,
}
"""The options of the memory that a URL may set, and how their text is read."""

_DRIVER_OPTIONS = (
    "client_name",
    "health_check_interval",
    "password",
    "sentinel",
    "socket_keepalive",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
    "username",
)
"""What redis-py reads in a URL, and ``sentinel``: the name under which Sentinels know a primary."""


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A URL, read.

    Attributes:
        drivers: the URL as redis-py takes it, for each of the hosts.
        hosts: names or addresses with ports: of one server, of a cluster, or Sentinels.
        database: its number.
        sentinel: the hosts are Sentinels, which know the primary under this name.
    """

    drivers: tuple[str, ...]
    hosts: tuple[tuple[str, int], ...]
    database: int
    sentinel: str | None


def read(url: str, given: Mapping[str, Any]) -> tuple[ServerUrl, dict[str, Any]]:
    """Read a URL; returns the memory's options in it and those given by keyword as well.

    Raises:
        InvalidMemoryUrl: it names no server.
        InvalidOption: an option is unknown, or given twice.
    """
    shown = without_password(url)
    options = options_of(url, given, OPTIONS | dict.fromkeys(_DRIVER_OPTIONS, str))
    try:
        parts = urlsplit(url)
        credentials, at, place = parts.netloc.rpartition("@")
        sentinel = options.get("sentinel")
        port = _PORT if sentinel is None else _SENTINEL_PORT
        hosts = tuple(_host(text, port) for text in place.split(","))
        database = int(parts.path.strip("/") or 0)
        if parts.scheme not in _SCHEMES or database < 0 or parts.fragment:
            raise ValueError(parts.scheme)
    except ValueError:  # it may show a part of the URL
        raise InvalidMemoryUrl(
            f"{shown!r} names no Redis server: write {' or '.join(EXAMPLES)}"
        ) from None
    query = [pair for pair in parse_qsl(parts.query) if pair[0] in _DRIVER_OPTIONS]
    query = [pair for pair in query if pair[0] != "sentinel"]
    before = f"{_SCHEMES[parts.scheme]}://{credentials}{at}"
    after = f"/{database}" + (f"?{urlencode(query)}" if query else "")
    drivers = tuple(f"{before}{_shown(host)}:{number}{after}" for host, number in hosts)
    ours = {name: value for name, value in options.items() if name in OPTIONS}
    return ServerUrl(drivers, hosts, database, sentinel), ours


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if parts.username or parts.path or parts.query:
        raise ValueError(text)
    return parts.hostname or "localhost", port if parts.port is None else parts.port


def address(url: str, options: Mapping[str, Any]) -> Address:
    """The server that ``redis://host:port/database`` names."""
    server, made = read(url, options)

    def open_server() -> RedisSessionMemory:
        from session_middleware.stores.redis import RedisSessionMemory  # or MissingExtra

        return RedisSessionMemory(url, **options)

    return Address(("redis", server, *sorted(made.items())), open_server)
