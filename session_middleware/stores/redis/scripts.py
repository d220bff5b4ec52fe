"""The Lua scripts that decide on the server, each with what it shares with others before it.

Texts only: who sends them, and what becomes of their answers, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files

from session_middleware.stores.items import COMPACTION_MARK


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest by which the server knows it."""

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)


_folder = files("session_middleware.stores.redis").joinpath("lua")


def _text(name: str) -> str:
    return _folder.joinpath(f"{name}.lua").read_text("utf-8")


def _script(*names: str) -> Script:
    constants = f"local COMPACTION = '{COMPACTION_MARK}'"
    return Script("\n".join((constants, *map(_text, ("session", *names)))))


ACQUIRE = _script("windows", "acquire")
WRITE = _script("write")
RETRY = _script("retry")
CHANGE = _script("change")
JOURNAL = _script("journal")
LINE = _script("line")
RELEASE = _script("release")
RENEW = _script("renew")
LOAD = _script("windows", "load")
ITEMS = _script("items")
RECORDS = _script("records")
INFO = _script("info")
NEWEST = _script("newest")
LABEL = _script("label")
COPIES = _script("copies")
PUT_COPIES = _script("put_copies")
REMOVE_TURNS = _script("remove_turns")
DELETE = _script("delete")
PENDING = _script("pending")
DECIDE = _script("decide")
ENTRIES = _script("entries")
CORRECT = _script("correct")
PAGE = Script(_text("page"))
