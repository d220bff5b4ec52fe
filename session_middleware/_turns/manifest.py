"""The manifest of one turn: which history its models were given, its traces, and what it spent.

Bookkeeping only, safe for threads. It holds places and numbers, no word of the conversation.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from session_middleware import _sdk
from session_middleware.history import Turn
from session_middleware.stores.records import Manifest, ManifestPart, ManifestRun


class TurnManifest:
    """The part of the manifest that one turn writes, and what the parts before it wrote.

    Attributes:
        digest: of the history that was loaded last; None where no trace records it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._earlier: Manifest = {}
        self._runs: dict[str, ManifestRun] = {}
        self._spending: dict[int, tuple[Any, Mapping[str, int]]] = {}
        self.digest: str | None = None

    def continues(self, earlier: Manifest | None) -> list[tuple[str, str]]:
        """The turn was parked, and this is what it wrote then; returns the ids of its roots."""
        with self._lock:
            self._earlier = earlier or {}
        return [
            (part["trace_id"], part["span_id"])
            for part in self._earlier.get("parts", [])
            if "trace_id" in part and "span_id" in part
        ]

    # --- what the models are given ---------------------------------------------------------

    def loaded(
        self,
        run: int,
        known: Sequence[Turn],
        kept: Sequence[Turn],
        items: int,
        repairs: Mapping[Any, int],
        hidden: Collection[int],
    ) -> None:
        """A run was given these of the turns that were read, as so many items after repair."""
        seen: ManifestRun = {"turns": _ranges(known, kept), "items": items}
        growing = {str(turn.turn): len(turn.items) for turn in kept if _may_grow(turn)}
        if growing:
            seen["growing"] = growing
        if repairs:
            seen["repairs"] = dict(repairs)
        if hidden:
            seen["hidden"] = sorted(hidden)
        with self._lock:
            self._runs[str(run)] = seen

    def called(self, run: int | None, items: int) -> None:
        """A model is about to be called with so many items, before their repair."""
        if run is not None:
            with self._lock:
                self._runs.setdefault(str(run), {}).setdefault("calls", []).append(items)

    # --- what it spends --------------------------------------------------------------------

    def watch(self, usage: Any) -> None:
        """A run counts what it spends in this object of the SDK's; before it was not ours."""
        with self._lock:
            if id(usage) not in self._spending:
                self._spending[id(usage)] = usage, _sdk.usage_of(usage)

    def spent(self) -> dict[str, int]:
        """What this part of the turn has spent, runs that failed included."""
        total: dict[str, int] = {}
        with self._lock:
            watched = list(self._spending.values())
        for usage, before in watched:
            for name, count in _sdk.usage_of(usage).items():
                more = count - before.get(name, 0)
                if more or name in before:
                    total[name] = total.get(name, 0) + more
        return total

    # --- its end ---------------------------------------------------------------------------

    def finished(self, root: tuple[str, str] | None) -> Manifest:
        """The whole manifest, with the ids of this part's root span where its trace is sampled."""
        part: ManifestPart = {}
        if root is not None:
            part["trace_id"], part["span_id"] = root
        if self.digest is not None:
            part["digest"] = self.digest
        spent = self.spent()
        if any(spent.values()):
            part["usage"] = spent
        with self._lock:
            parts = [*self._earlier.get("parts", []), *([part] if part else [])]
            runs = {**self._earlier.get("runs", {}), **self._runs}
        return {"parts": parts, "runs": runs}


def usage_of(manifest: Manifest) -> dict[str, int] | None:
    """What all parts of the turn spent together."""
    total: dict[str, int] = {}
    for part in manifest.get("parts", []):
        for name, count in part.get("usage", {}).items():
            total[name] = total.get(name, 0) + count
    return total or None


def digest_of(manifest: Manifest) -> str | None:
    """The digest of the history that was loaded last, in whichever part."""
    digests = [part["digest"] for part in manifest.get("parts", []) if "digest" in part]
    return digests[-1] if digests else None


def _ranges(known: Sequence[Turn], kept: Sequence[Turn]) -> list[list[int]]:
    """The numbers of the turns that were kept, as ranges that lack none of those that are known."""
    if not kept:
        return []
    if len(kept) == len(known):
        return [[kept[0].turn, kept[-1].turn]]
    following = {before.turn: after.turn for before, after in pairwise(known)}
    ranges = [[kept[0].turn, kept[0].turn]]
    for turn in kept[1:]:
        if following.get(ranges[-1][1]) == turn.turn:
            ranges[-1][1] = turn.turn
        else:
            ranges.append([turn.turn, turn.turn])
    return ranges


def _may_grow(turn: Turn) -> bool:
    """Whether the turn did not end with its model's words, so that more of it may be stored."""
    return bool(turn.items) and turn.items[-1].get("role") != "assistant"
