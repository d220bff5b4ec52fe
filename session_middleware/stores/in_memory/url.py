"""How a URL names a memory without a file: ``:memory:``, with ``?ttl=`` where sessions end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from session_middleware.stores.in_memory.memory import InMemorySessionMemory
from session_middleware.stores.urls import Address, options_of

EXAMPLES = ("':memory:' (for this process)",)


def address(url: str, options: Mapping[str, Any]) -> Address:
    """A memory that lives and dies with the process."""
    made = options_of(url, options, {"ttl": float})
    return Address((":memory:", *sorted(made.items())), partial(InMemorySessionMemory, **made))
