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
from typing import Any

import wrapt

from session_middleware import _calling, _sdk, history
from session_middleware._account import Account
from session_middleware._options import Options
from session_middleware._sdk import RunCall
from session_middleware.hooks import SessionRunHooks
from session_middleware.telemetry import TurnTelemetry, log

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
            self._self_saved(operation.count)
        return result

    def _self_loaded(self, items: Any) -> None:
        telemetry, texts = self._self_telemetry, None
        if telemetry.recording and isinstance(items, list):
            try:
                texts = [history.text_of(item) for item in items]
            except Exception as error:  # what they keep is their affair, and the SDK's
                log.swallowed("history", error)
        if texts is None:
            telemetry.history(_count(items), None, None)
        else:
            telemetry.history(len(items), *history.size_and_digest(texts))

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
    """A run whose session is not ours; also its own seat, for there is no turn to take part in."""

    gated = False
    cancels_on_departure = False
    owes = False

    def __init__(self, call: RunCall, session: ObservedSession, telemetry: TurnTelemetry) -> None:
        self.call = call
        self.session = session
        self.telemetry = telemetry
        self._account = Account()
        self._account.make(None if call.resumes else call.input)
        self._span: Any = None

    def in_force(self) -> AbstractContextManager[None]:
        return self.telemetry.attached()

    async def send(self) -> None:
        """Nothing waits: the session is not ours."""

    async def leave(self, error: BaseException | None = None) -> None:
        self.leave_soon(error)

    def leave_blocking(self, error: BaseException | None = None) -> None:
        self.leave_soon(error)

    def leave_soon(self, error: BaseException | None = None) -> None:
        record = self._account.record(
            error, on_failure="keep", durable=False, otel_trace_id=self.telemetry.otel_trace_id
        )
        self.telemetry.end(
            record.state,
            error,
            new_items=self.session._self_stored,
            usage=record.usage,
            input_text=self._account.input_text,
            output_text=self._account.output_text,
        )

    async def prepare(self) -> None:
        """Nothing is taken: the session is not ours."""

    def prepare_streamed(self) -> None:
        """Likewise."""

    async def is_over(self) -> None:
        """Likewise."""

    def equip(self) -> None:
        arguments = self.call.arguments
        arguments["session"] = self.session
        arguments["hooks"] = SessionRunHooks.around(arguments.get("hooks"), self.telemetry)
        self._span, mismatch = _sdk.correlate(self.call, self.telemetry.trace_metadata())
        if mismatch is not None:
            self.telemetry.event("outer_trace_group_mismatch")

    def over(self, result: Any = None, error: BaseException | None = None, *, here: bool) -> None:
        if self._span is not None:
            self._span.finish(reset_current=here)
        if error is None:
            outcome = _sdk.outcome_of(result)
            self._account.stops(
                1,
                "completed" if outcome.parked is None else "awaiting_approval",
                parked=outcome.parked,
                output=outcome.output_text,
                usage=outcome.usage,
            )


def is_observed(session: Any) -> bool:
    """Whether this session is watched already, by a run around this one."""
    return type(session) is ObservedSession


def carry_out(session: Any, call: RunCall, options: Options) -> Any:
    """Make a Runner call that brings its own session, and watch it."""
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
    telemetry.event("turn_started", name=call.workflow_name)
    one = _ObservedRun(call, ObservedSession(session, telemetry), telemetry)
    return _calling.carry_out(one, lambda: one, call.method)
