"""How a URL names an SQLite file. Imports no driver and opens nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from session_middleware.errors import InvalidMemoryUrl
from session_middleware.stores.passwords import without_password
from session_middleware.stores.urls import Address, options_of

if TYPE_CHECKING:
    from session_middleware.stores.sqlite.memory import SQLiteSessionMemory

EXAMPLES = (
    "'sqlite:///chat.db' (in the current directory)",
    "'sqlite:////var/lib/chat.db' (an absolute path)",
)

OPTIONS: dict[str, Callable[[str], Any]] = {
    "lease": float,
    "operation_timeout": float,
    "synchronous": str.upper,
    "ttl": float,
}


def address(url: str, options: Mapping[str, Any]) -> Address:
    """The file that ``sqlite:///rel.db`` or ``sqlite:////abs.db`` names, made absolute at once."""
    path = url.partition("://")[2].partition("?")[0]
    shown = without_password(url)
    if not path.startswith("/") or not path.strip("/"):
        raise InvalidMemoryUrl(
            f"{shown!r} names no file after three slashes: write {' or '.join(EXAMPLES)}"
        )
    if path == "/:memory:":
        raise InvalidMemoryUrl(f"a memory without a file is ':memory:', got {shown!r}")
    file = os.path.abspath(unquote(path[1:]))
    made = options_of(url, options, OPTIONS)

    def open_file() -> SQLiteSessionMemory:
        from session_middleware.stores.sqlite.memory import SQLiteSessionMemory

        return SQLiteSessionMemory(file, **made)

    return Address(("sqlite", file, *sorted(made.items())), open_file)
