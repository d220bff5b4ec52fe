"""The names of our keys, and nothing else.

Every key of a session has one hash tag, made from an encoding of the session id, so that a cluster
keeps them on one server and no character of an id has a meaning there. What spans sessions lies in
shards of its own. No key outside the prefix is ever named.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple
from urllib.parse import quote, unquote

SHARDS = 16
"""So many parts has what spans sessions: a hot session is in one of them, a page reads all."""

_PARTS = ("session", "turns", "items", "parks", "keys", "done", "gone", "calls", "line", "states")
_INDEXES = ("recent", "created", "names", "parked", "waiting", "traces")


class Indexes(NamedTuple):
    """The sorted sets of one shard, in the order in which the scripts declare them.

    Attributes:
        recent, created: sessions by their last activity and by their beginning.
        names: sessions by their ids.
        parked: names of parked runs, each with its session.
        waiting: turns that wait for approval, by the moment since which they do.
        traces: traces, each with its session and turn.
    """

    recent: str
    created: str
    names: str
    parked: str
    waiting: str
    traces: str


class Keys:
    """The keys of one memory, under its prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def of_session(self, session_id: str) -> list[str]:
        """All keys that a session may have, in the order in which the scripts declare them."""
        tag = f"{self.prefix}:{{{quote(session_id, safe='')}}}:"
        return [tag + part for part in _PARTS]

    def items_of(self, session_id: str) -> str:
        """The key of the session's items."""
        return self.of_session(session_id)[_PARTS.index("items")]

    def indexes_of(self, session_id: str) -> Indexes:
        """The keys of what is known of the session beside those of other sessions."""
        return self.indexes(zlib.crc32(session_id.encode()) % SHARDS)

    def indexes(self, shard: int) -> Indexes:
        """The keys of one shard."""
        return Indexes(*(f"{self.prefix}:{{index-{shard}}}:{name}" for name in _INDEXES))

    @property
    def all_indexes(self) -> list[Indexes]:
        """The keys of every shard."""
        return [self.indexes(shard) for shard in range(SHARDS)]

    @property
    def fence(self) -> str:
        """The key of the highest fence of the memories that sessions were copied from."""
        return f"{self.prefix}:{{index-0}}:fence"

    @property
    def sweep(self) -> str:
        """The key that whoever sweeps the indexes at this moment has set."""
        return f"{self.prefix}:{{index-0}}:sweep"

    @property
    def channel(self) -> str:
        """The channel on which whoever waits for a session hears that it is free."""
        return f"{self.prefix}:free"

    @property
    def sessions(self) -> str:
        """A pattern for the first key of every session."""
        escaped = "".join(f"\\{c}" if c in "\\*?[]^" else c for c in self.prefix)
        return f"{escaped}:{{*}}:session"

    def session_of(self, key: bytes) -> str:
        """The id of the session whose first key this is."""
        tag = key.decode()[len(self.prefix) + 2 : -len("}:session")]
        return unquote(tag)
