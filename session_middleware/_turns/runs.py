"""The runs of a turn: which are running, which may be made again, how the turn ended.

Bookkeeping only, safe for threads: no memory is asked here, and nothing is awaited.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from session_middleware.errors import IdempotencyConflict
from session_middleware.stores.records import (
    CarriedRun,
    KeptState,
    RunState,
    TurnEnd,
    TurnState,
)


@dataclass(eq=False, slots=True)
class LeftRun:
    """A run of this turn, or of an earlier attempt of it, that may be made again.

    Attributes:
        idle: it is of an earlier attempt, and no tool did its work in it.
        items: how many items it has stored.
        also: where its items are if this one has none: a run that set out to take them over and
            never heard whether it did.
    """

    run: int
    input_digest: str | None
    idle: bool = False
    also: LeftRun | None = None
    items: int = 0


class RunTracker:
    """The runs of one turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 1
        self._running: set[int] = set()
        self._states: dict[int, RunState] = {}
        self._left: list[LeftRun] = []
        self._inputs: set[str] = set()
        self._parked: dict[str, KeptState] = {}
        self._resumed: dict[int, str] = {}
        self._aliases: dict[str, str] = {}
        self._agent: str | None = None
        self._output: str | None = None
        self._traces: dict[str, None] = {}
        self._input: Any = None
        self.made = 0
        self.stored = 0

    def begin(self, next_run: int, carried: Sequence[CarriedRun]) -> None:
        """The session was taken; an earlier attempt left these runs."""
        with self._lock:
            self._next = max(self._next, next_run)
            self._left = [
                LeftRun(run.run, run.input_digest, idle=not run.has_outputs, items=run.item_count)
                for run in carried
                if run.item_count
            ]
            self._inputs = {run.input_digest for run in carried if run.input_digest}

    def count(self, new_input: Any) -> None:
        """A run is about to be made with this new input."""
        with self._lock:
            self.made += 1
            if self._input is None:
                self._input = new_input

    @property
    def given(self) -> Any:
        """The new input of the turn's first run: a text or items; None where it resumed."""
        return self._input

    @property
    def output(self) -> str | None:
        """The output of the run that completed last."""
        return self._output

    def next_run(self) -> int:
        """Reserve the next run number."""
        with self._lock:
            number = self._next
            self._next += 1
            return number

    def running(self, besides: int | None = None) -> set[int]:
        """The runs that are going on."""
        with self._lock:
            return self._running - {besides}

    def claim(self, input_digest: str) -> LeftRun | None:
        """The earlier run that a run with this new input makes again, if there is one.

        Raises:
            IdempotencyConflict: the turn retries an earlier attempt, and its first run has
                another input than any run of that attempt.
        """
        with self._lock:
            inputs, self._inputs = self._inputs, set()
            for left in self._left:
                if left.input_digest == input_digest:
                    self._left.remove(left)
                    return left
            if inputs and input_digest not in inputs:
                raise IdempotencyConflict(
                    "this idempotency key was used with another input before: "
                    "use a new key for a new input"
                )
            return None

    def superseded(self) -> list[int]:
        """Runs of an earlier attempt that this one did without, and that did no work."""
        with self._lock:
            return [left.run for left in self._left if left.idle]

    def start(self, run: int) -> None:
        """A run has got its number and is going on."""
        with self._lock:
            self._running.add(run)
            self._states[run] = "running"

    def resume(self, run: int, identity: str) -> None:
        """The run resumes one that was parked under this identity."""
        with self._lock:
            self._resumed[run] = identity

    def replace(self, run: int) -> None:
        """Another run took over what this one left."""
        with self._lock:
            self._states[run] = "replaced"

    def stop(
        self,
        run: int | None,
        state: RunState,
        *,
        left: LeftRun | None = None,
        parked: KeptState | None = None,
        agent: str | None = None,
        output: str | None = None,
        alias: str | None = None,
    ) -> None:
        """A run is over.

        Args:
            alias: what the state is known by from now on that the run resumed.
        """
        with self._lock:
            if run is not None:
                if alias is not None and run in self._resumed:
                    self._aliases[alias] = self._resumed[run]
                self._running.discard(run)
                self._states[run] = state
                if parked is not None:
                    self._parked[parked.identity] = parked
            if left is not None:
                self._left.append(left)
            self._agent = agent or self._agent
            if state == "completed":
                self._output = output

    def fail(self, runs: Iterable[int]) -> None:
        """These runs seemed to complete, and what they did could not be stored."""
        with self._lock:
            self._states.update(dict.fromkeys(runs, "failed"))

    def unpark(self, identity: str) -> bool:
        """Whether a run of this turn waits under that identity; it no longer does."""
        with self._lock:
            return self._parked.pop(identity, None) is not None

    def in_trace(self, trace_id: str) -> bool:
        """A run belongs to that SDK trace; returns whether that is news."""
        with self._lock:
            news = trace_id not in self._traces
            self._traces[trace_id] = None
            return news

    def record(
        self,
        error: BaseException | None,
        *,
        on_failure: Literal["keep", "discard"],
        durable: bool,
        **told: Any,
    ) -> TurnEnd:
        """How the turn ended; ``told`` are fields that others know."""
        state: TurnState
        with self._lock:
            if error is None:
                state = "awaiting_approval" if self._parked else "completed"
            else:
                state = "failed" if isinstance(error, Exception) else "cancelled"
            return TurnEnd(
                state=state,
                ended_at=datetime.now(UTC),
                runs=dict(self._states),
                discard=on_failure == "discard" and state in ("failed", "cancelled"),
                park=tuple(self._parked) if state == "awaiting_approval" else (),
                states=tuple(self._parked.values()) if state == "awaiting_approval" else (),
                # Whoever is given a parked state relies on the memory to know it.
                durable=durable or state == "awaiting_approval",
                agent=_storable(self._agent),
                error_type=None if error is None else type(error).__name__,
                sdk_trace_ids=tuple(self._traces),
                output_text=_storable(self._output) if state == "completed" else None,
                aliases=tuple(self._aliases.items()),
                settles=tuple(
                    identity
                    for run, identity in self._resumed.items()
                    if self._states.get(run) in ("completed", "awaiting_approval")
                ),
                **told,
            )


_SURROGATE = re.compile("[\ud800-\udfff]")


def _storable(text: str | None) -> str | None:
    """The text without lone surrogates, which a model may say and no encoding has.

    The item it is from is stored as it is, as JSON.
    """
    return None if text is None else _SURROGATE.sub("\ufffd", text)
