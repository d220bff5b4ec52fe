"""Runs that bring a session of another kind: the same traces, metrics and events, nothing else.

Their session stays who it is. The SDK is handed a proxy that passes for it in every way: its
class, its extra methods, and the signatures of the ones that are watched.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sized
from contextlib import AbstractContextManager
from typing import Any, Self

import wrapt

from session_middleware import _sdk, history
from session_middleware._sdk import RunCall
from session_middleware._turns import invoke as _invoke
from session_middleware._turns.manifest import TurnManifest
from session_middleware._turns.reports import RunReports
from session_middleware._turns.runs import RunTracker
from session_middleware.options import Options
from session_middleware.telemetry import Said, TurnTelemetry, log

OPERATIONS = {
    "get_items": "search_memory",
    "add_items": "create_memory",
    "pop_item": "delete_memory",
    "clear_session": "delete_memory",
    "run_compaction": "update_memory",
}


class ObservedSession(wrapt.BaseObjectProxy[Any]):
    """A session of the user's whose operations are seen."""

    def __init__(self, session: Any, telemetry: TurnTelemetry) -> None:
        super().__init__(session)
        self._self_telemetry = telemetry
        self._self_stored = 0

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name in OPERATIONS and callable(value):
            return wrapt.FunctionWrapper(value, functools.partial(self._self_watched, name))
        return value

    async def _self_watched(
        self, name: str, method: Any, instance: Any, args: Any, kwargs: Any
    ) -> Any:
        telemetry = self._self_telemetry
        try:
            with telemetry.operation(OPERATIONS[name]) as operation:
                if name == "add_items":
                    operation.count = _count(args[0] if args else kwargs.get("items"))
                result = method(*args, **kwargs)
                if inspect.isawaitable(result):  # the SDK takes plain methods too
                    result = await result
                if name == "get_items":
                    operation.count = _count(result)
        except Exception as error:
            failed = "load_failed" if name == "get_items" else "save_failed"
            telemetry.event(failed, error_type=type(error).__name__)
            raise
        if name == "get_items":
            self._self_loaded(result)
        elif name == "add_items":
            self._self_saved(operation.count or 0)
        return result

    def _self_loaded(self, items: Any) -> None:
        telemetry = self._self_telemetry
        size: int | None = None
        digest: str | None = None
        if telemetry.recording and isinstance(items, list):
            try:
                size, digest = history.size_and_digest(items)
            except Exception as error:  # what they keep is their affair, and the SDK's
                log.swallowed("history", error)
        telemetry.history(_count(items), size, digest)

    def _self_saved(self, count: int) -> None:
        self._self_stored += count
        self._self_telemetry.event("items_saved", count=count)
        trace = _sdk.trace_here()
        if trace is not None:
            self._self_telemetry.sdk_trace(*trace)

    def __copy__(self) -> Any:
        return ObservedSession(copy.copy(self.__wrapped__), self._self_telemetry)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return ObservedSession(copy.deepcopy(self.__wrapped__, memo), self._self_telemetry)


def _count(items: Any) -> int:
    return len(items) if isinstance(items, Sized) else 0


class _ObservedRun:
    """A run whose session is not ours."""

    gated = False
    on_departure = None

    def __init__(self, call: RunCall, session: ObservedSession, telemetry: TurnTelemetry) -> None:
        self.call = call
        self.session = session
        self.telemetry = telemetry
        self.tracker = RunTracker()
        self.manifest = TurnManifest()
        self.tracker.count(None if call.resumes else call.input)
        self.result: Any = None
        self.failure: BaseException | None = None
        self._span: Any = None

    def in_force(self) -> AbstractContextManager[None]:
        return self.telemetry.attached()

    async def prepare(self) -> None:
        """Nothing is acquired: the session is not ours."""

    def prepare_streamed(self) -> None:
        """Likewise."""

    async def prepare_called(self) -> None:
        """Likewise."""

    async def end(self) -> None:
        """Likewise."""

    def equip(self) -> None:
        hooks = RunReports.behind(self.call.hooks, self.telemetry, self.manifest)
        self.call.equip(self.session, hooks)
        self._span, mismatch = _sdk.correlate(self.call, self.telemetry.trace_metadata())
        if mismatch is not None:
            self.telemetry.event("outer_trace_group_mismatch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._span is not None:
            self._span.finish(reset_current=self.call.method != "run_streamed")
        if error is None and self.failure is None:
            outcome = _sdk.outcome_of(self.result)
            self.tracker.stop(
                1,
                "completed" if outcome.parked is None else "awaiting_approval",
                parked=outcome.parked,
                output=outcome.output_text,
            )


class _ObservedPart:
    """The participant of an observed run, in no turn: leaving ends what is reported of the run."""

    def __init__(self, run: _ObservedRun) -> None:
        self._run = run
        self.failure: BaseException | None = None

    def new_run(self, call: RunCall) -> _ObservedRun:
        return self._run

    async def deliver(self) -> None:
        """Nothing is deferred: the session is not ours."""

    def deliver_blocking(self) -> None:
        """Likewise."""

    async def __aenter__(self) -> None:
        """There is no turn to enter."""

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.leave_soon(error or self.failure)

    def __enter__(self) -> None:
        """Likewise."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.leave_soon(error or self.failure)

    def leave_soon(self, error: BaseException | None = None) -> None:
        run = self._run
        record = run.tracker.record(error, on_failure="keep", durable=False)
        run.telemetry.end(
            record.state,
            error,
            new_items=run.session._self_stored,
            usage=run.manifest.spent(),
            said=lambda: Said(run.tracker.given, run.tracker.output),
        )


def is_observed(session: Any) -> bool:
    """Whether this session is observed already, by a run around this one."""
    return type(session) is ObservedSession


def invoke(session: Any, call: RunCall, options: Options) -> Any:
    """Make a Runner call that brings its own session, and observe it."""
    try:
        session_id = session.session_id
    except Exception:  # some sessions have no id before their first use
        session_id = None
    if not isinstance(session_id, str) or not session_id:
        return call.go()  # there is nothing to group by
    telemetry = TurnTelemetry(
        options.telemetry,
        name=call.workflow_name,
        session_id=session_id,
        backend=type(session).__name__,
        streaming=call.method == "run_streamed",
    )
    telemetry.start()
    telemetry.event("turn_started", turn_name=call.workflow_name)
    run = _ObservedRun(call, ObservedSession(session, telemetry), telemetry)
    return _invoke.invoke(_ObservedPart(run), call)
