"""What a turn has to say of its runs: which are going on, which may be made again, how it ended.

Bookkeeping only, safe for threads: no memory is asked here, and nothing is awaited.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from session_middleware.errors import IdempotencyConflict
from session_middleware.history import text_of
from session_middleware.memory import CarriedRun, RunState, TurnEnd, TurnState


@dataclass(slots=True)
class LeftRun:
    """A run of this turn, or of an earlier attempt of it, that may be made again.

    Attributes:
        carried: it is of an earlier attempt.
        also: where its items are if this one has none: a run that set out to take them over and
            never heard whether it did.
    """

    run: int
    input_digest: str | None
    has_outputs: bool
    carried: bool = False
    also: LeftRun | None = None


class Account:
    """The runs of one turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 1
        self._running: set[int] = set()
        self._states: dict[int, RunState] = {}
        self._left: list[LeftRun] = []
        self._inputs: set[str] = set()
        self._parked: dict[str, int] = {}
        self._agent: str | None = None
        self._output: str | None = None
        self._usage: dict[int, dict[str, int]] = {}
        self._traces: dict[str, None] = {}
        self._input: Any = None
        self.made = 0
        self.stored = 0
        self.history_digest: str | None = None

    def begin(self, next_run: int, carried: Sequence[CarriedRun]) -> None:
        """The session was taken; an earlier attempt left these runs."""
        with self._lock:
            self._next = max(self._next, next_run)
            self._left = [
                LeftRun(run.run, run.input_digest, run.has_outputs, carried=True)
                for run in carried
                if run.item_count
            ]
            self._inputs = {run.input_digest for run in carried if run.input_digest}

    def make(self, new_input: Any) -> None:
        """A run is about to be made with this new input."""
        with self._lock:
            self.made += 1
            if self._input is None:
                self._input = new_input

    @property
    def input_text(self) -> Callable[[], str] | None:
        """Gives the new input of the turn's first run, as text."""
        given = self._input
        return (
            None if given is None else lambda: given if isinstance(given, str) else text_of(given)
        )

    @property
    def output_text(self) -> Callable[[], str] | None:
        """Gives the output of the run that completed last."""
        output = self._output
        return None if output is None else lambda: output

    def next_run(self) -> int:
        """Reserve the next run number."""
        with self._lock:
            number = self._next
            self._next += 1
            return number

    def going_on(self, besides: int | None = None) -> set[int]:
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
            return [left.run for left in self._left if left.carried and not left.has_outputs]

    def starts(self, run: int) -> None:
        """A run has got its number and is going on."""
        with self._lock:
            self._running.add(run)
            self._states[run] = "running"

    def replaced(self, run: int) -> None:
        """Another run took over what this one left."""
        with self._lock:
            self._states[run] = "replaced"

    def stops(
        self,
        run: int | None,
        state: RunState,
        *,
        left: LeftRun | None = None,
        parked: str | None = None,
        agent: str | None = None,
        output: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> None:
        """A run is over."""
        with self._lock:
            if run is not None:
                self._running.discard(run)
                self._states[run] = state
                if usage is not None:
                    self._usage[run] = usage
                if parked is not None:
                    self._parked[parked] = run
            if left is not None:
                self._left.append(left)
            self._agent = agent or self._agent
            if state == "completed":
                self._output = output

    def failed(self, runs: Iterable[int]) -> None:
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
        otel_trace_id: str | None,
    ) -> TurnEnd:
        """How the turn ended."""
        state: TurnState
        with self._lock:
            if error is None:
                state = "awaiting_approval" if self._parked else "completed"
            else:
                state = "failed" if isinstance(error, Exception) else "cancelled"
            usage: dict[str, int] = {}
            for reported in self._usage.values():
                for name, count in reported.items():
                    usage[name] = usage.get(name, 0) + count
            return TurnEnd(
                state=state,
                ended_at=datetime.now(UTC),
                runs=dict(self._states),
                discard=on_failure == "discard" and state in ("failed", "cancelled"),
                park=tuple(self._parked) if state == "awaiting_approval" else (),
                durable=durable,
                agent=_storable(self._agent),
                error_type=None if error is None else type(error).__name__,
                sdk_trace_ids=tuple(self._traces),
                otel_trace_id=otel_trace_id,
                usage=usage or None,
                output_text=_storable(self._output) if state == "completed" else None,
                history_digest=self.history_digest,
            )


_SURROGATE = re.compile("[\ud800-\udfff]")


def _storable(text: str | None) -> str | None:
    """The text without lone surrogates, which a model may say and no encoding has.

    The item it is from is stored as it is, as JSON.
    """
    return None if text is None else _SURROGATE.sub("\ufffd", text)
