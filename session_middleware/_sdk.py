"""The one place that touches the ``agents`` package.

What we rely on of the SDK is named here and checked when the Runner is first intercepted; a
release that changes it fails with a message that names the versions that work. Nothing here
knows of stores, turns or telemetry.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import wrapt
from agents import ItemHelpers, RunConfig, RunHooks, Runner, RunState
from agents import custom_span as sdk_span
from agents import get_current_trace as current_trace
from agents.run import CallModelData, ModelInputData

from session_middleware.errors import SessionMemoryError
from session_middleware.history import digest

__all__ = [
    "RUNNER_METHODS",
    "Outcome",
    "RunCall",
    "RunHooks",
    "Runner",
    "bind",
    "correlate",
    "drop_new_input",
    "filter_model_input",
    "find_state",
    "go_gated",
    "new_items",
    "outcome_of",
    "parked_identity",
    "patch",
    "patched",
    "runner_method",
    "trace_here",
    "unpatch",
]

RUNNER_METHODS: Final = ("run", "run_sync", "run_streamed")
SUPPORTED: Final = "openai-agents 0.24 or newer"

_USED = ("starting_agent", "input", "hooks", "run_config", "session")
_SERVER_STATE = ("conversation_id", "previous_response_id", "auto_previous_response_id")

_originals: dict[str, Any] = {}
_patching = threading.Lock()


# --- interception --------------------------------------------------------------------------


def _check_signatures() -> None:
    for name in RUNNER_METHODS:
        method = inspect.getattr_static(Runner, name, None)
        if not isinstance(method, classmethod):
            missing = "is no classmethod"
        else:
            parameters = inspect.signature(method.__func__).parameters
            lacking = [used for used in (*_USED, *_SERVER_STATE) if used not in parameters]
            missing = f"has no parameter {', '.join(lacking)}" if lacking else ""
        if missing:
            raise SessionMemoryError(
                f"this openai-agents ({version('openai-agents')}) is not one that sessions can be "
                f"put around: Runner.{name} {missing}. Install {SUPPORTED} with which this "
                "version of session-middleware was tested, or a newer session-middleware."
            )


def patched() -> bool:
    """Whether Runner's methods are intercepted."""
    return bool(_originals)


def patch(around: Callable[[str], Callable[..., Any]]) -> None:
    """Wrap Runner's three methods in place, once.

    ``around(name)`` gives the wrapt wrapper for a method.

    Raises:
        SessionMemoryError: the SDK's methods are not as we know them; nothing was changed.
    """
    with _patching:
        if _originals:
            return
        _check_signatures()
        for name in RUNNER_METHODS:
            _originals[name] = inspect.getattr_static(Runner, name)
            wrapt.wrap_function_wrapper(Runner, name, around(name))


def unpatch() -> None:
    """Put Runner's methods back as they were."""
    with _patching:
        for name, original in _originals.items():
            setattr(Runner, name, original)
        _originals.clear()


def runner_method(function: object) -> str | None:
    """Which of Runner's methods this is, bound earlier or wrapped by us; else None."""
    name = getattr(function, "__name__", None)
    owner = getattr(function, "__self__", None)
    if name in RUNNER_METHODS and isinstance(owner, type) and issubclass(owner, Runner):
        return str(name)
    return None


# --- one call of the Runner ----------------------------------------------------------------


@dataclass(slots=True)
class RunCall:
    """One call of a Runner method: which one, what does it, and its arguments by name."""

    method: str
    proceed: Callable[..., Any]
    arguments: dict[str, Any]
    digest: str | None = None

    @property
    def input(self) -> Any:
        return self.arguments.get("input")

    @property
    def resumes(self) -> bool:
        """Whether the input is the state of an interrupted run."""
        return isinstance(self.input, RunState)

    @property
    def server_state(self) -> str | None:
        """The argument that leaves the history to the provider, if one is given."""
        return next((name for name in _SERVER_STATE if self.arguments.get(name)), None)

    @property
    def workflow_name(self) -> str:
        return str(_setting(self, "workflow_name") or RunConfig.workflow_name)

    def go(self) -> Any:
        """Make the call."""
        return self.proceed(**self.arguments)


def bind(method: str, proceed: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> RunCall:
    """Name a call's arguments.

    Raises:
        TypeError: the SDK's own, for arguments it does not take.
    """
    signature = _signature(proceed)
    arguments = signature.plainly_bound(args, kwargs)
    if arguments is not None:
        return RunCall(method, proceed, arguments)
    try:
        bound = signature.of_method.bind(*args, **kwargs).arguments
    except TypeError:
        proceed(*args, **kwargs)  # cannot be called so either, and says it in its own words
        raise
    arguments = {}
    for name, value in bound.items():
        kind = signature.of_method.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:  # a subclass that hands on what it is given
            arguments.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            known = _signature(getattr(Runner, method)).names
            arguments.update(zip(known[len(arguments) :], value, strict=False))
        else:
            arguments[name] = value
    return RunCall(method, proceed, arguments)


class _Signature:
    """What a bound method takes; binding by ``inspect`` alone takes a multiple of the time."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.of_method = inspect.signature(method)
        parameters = self.of_method.parameters.values()
        ordinary = inspect.Parameter.POSITIONAL_OR_KEYWORD
        by_name = {ordinary, inspect.Parameter.KEYWORD_ONLY}
        self.names = [*self.of_method.parameters]
        self._is_plain = all(one.kind in by_name for one in parameters)
        self._places = [one.name for one in parameters if one.kind is ordinary]
        self._needed = {one.name for one in parameters if one.default is one.empty}

    def plainly_bound(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments by name; None where they do not fit, or it is not that simple."""
        arguments = dict(zip(self._places, args, strict=False)) | kwargs
        fits = self._needed <= arguments.keys() <= self.of_method.parameters.keys()
        if not (fits and self._is_plain and len(arguments) == len(args) + len(kwargs)):
            return None
        return arguments


_signatures: dict[Any, _Signature] = {}


def _signature(method: Callable[..., Any]) -> _Signature:
    """The signature of a bound method, worked out once for its function."""
    function = getattr(method, "__func__", method)
    signature = _signatures.get(function)
    if signature is None:
        signature = _signatures[function] = _Signature(method)
    return signature


def new_items(value: Any) -> Sequence[Any]:
    """The items of a run's new input."""
    return value if isinstance(value, list) else ItemHelpers.input_to_new_input_list(value)


def find_state(values: Iterable[Any]) -> RunState[Any, Any] | None:
    """The first state of an interrupted run among these values."""
    return next((value for value in values if isinstance(value, RunState)), None)


def go_gated(call: RunCall, gate: Callable[[], Awaitable[None]]) -> Any:
    """Call ``run_streamed`` so that its run loop begins only after ``gate()``.

    A resumed run loads no history, so nothing of ours would be asked before its first tool. The
    loop's task factory is ours for the length of the call, which makes just that one task.
    """
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    results: list[Any] = []

    async def gated(run_loop: Coroutine[Any, Any, Any]) -> Any:
        try:
            await asyncio.sleep(0)  # until whoever awaits the run loop does so
            await gate()
        except BaseException:
            run_loop.close()
            results[0].cancel()  # wakes up whoever waits for events
            raise
        return await run_loop

    def factory(of: Any, run_loop: Any, **options: Any) -> Any:
        work = gated(run_loop)
        return before(of, work, **options) if before else asyncio.Task(work, loop=of, **options)

    loop.set_task_factory(factory)
    try:
        results.append(call.go())
    finally:
        loop.set_task_factory(before)
    return results[0]


def drop_new_input(call: RunCall, dropped: Callable[[], bool]) -> None:
    """Let the run leave out its new input if ``dropped()`` says so when the history is loaded.

    For a streamed run, whose input must be handed over before anything can be awaited.
    """
    given = _setting(call, "session_input_callback")

    async def merge(history: list[Any], new: list[Any]) -> list[Any]:
        if dropped():
            return history
        if given is None:
            return history + new
        merged = given(history, new)
        return list(await merged if inspect.isawaitable(merged) else merged)

    _change_settings(call, session_input_callback=merge)


def merges_input(call: RunCall) -> bool:
    """Whether the call's own ``session_input_callback`` decides what is stored of its input."""
    return _setting(call, "session_input_callback") is not None


def filter_model_input(call: RunCall, change: Callable[[list[Any]], list[Any]]) -> None:
    """Let ``change`` have the last word on what each model call of the run is given.

    The user's own ``call_model_input_filter`` goes first.
    """
    given = _setting(call, "call_model_input_filter")

    async def filtered(data: CallModelData[Any]) -> Any:
        model_data = data.model_data
        if given is not None:
            model_data = given(data)
            if inspect.isawaitable(model_data):
                model_data = await model_data
            if not isinstance(model_data, ModelInputData):
                return model_data  # for the SDK to refuse
        items = change(model_data.input)
        return ModelInputData(input=items, instructions=model_data.instructions)

    _change_settings(call, call_model_input_filter=filtered)


# --- tracing -------------------------------------------------------------------------------


def _setting(call: RunCall, name: str) -> Any:
    """A setting of the call's run config, which may be an object, a dict or none."""
    config = call.arguments.get("run_config")
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _change_settings(call: RunCall, **changes: Any) -> None:
    """Change the call's run config; a dict or none stays a dict.

    Making an object of them would change who closes the model provider.
    """
    config = call.arguments.get("run_config")
    if config is None or isinstance(config, dict):
        call.arguments["run_config"] = {**(config or {}), **changes}
    else:
        call.arguments["run_config"] = dataclasses.replace(config, **changes)


def trace_here() -> tuple[str, str | None] | None:
    """``(trace id, group id)`` of the SDK trace that is active here."""
    trace = current_trace()
    exported = trace.export() if trace is not None else None
    if not exported:
        return None
    return str(exported.get("id")), exported.get("group_id")


def correlate(call: RunCall, metadata: dict[str, str]) -> tuple[Any, str | None]:
    """Tie a run that is about to be called to its session in the SDK's traces.

    No trace active and no group id given: the session id becomes the group id, and the trace's
    metadata has it. A group id of the user's stays. Inside a trace that is active already, which
    must be neither nested nor changed, a span carries the session id. Where ``metadata`` has no
    session id, it is not to be shown, and none of this happens.

    Returns:
        That span, started and current, to be finished when the run is over (None without an
        outer trace), and the outer trace's group id where it is another than the session's.
    """
    session_id = metadata.get("session_id")
    outer = trace_here()
    if outer is not None and session_id is None:
        return None, None
    if outer is not None:
        span: Any = sdk_span("session", data=dict(metadata))
        span.start(mark_as_current=True)
        return span, outer[1] if outer[1] != session_id else None
    if not call.resumes:  # a resumed run goes on in its own trace, unchanged
        _change_settings(
            call,
            group_id=_setting(call, "group_id") or session_id,
            trace_metadata={**metadata, **(_setting(call, "trace_metadata") or {})},
        )
    return None, None


# --- what came of a run --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run says of itself."""

    agent: str | None
    output_text: str | None
    usage: dict[str, int] | None
    parked: str | None


def outcome_of(result: Any) -> Outcome:
    """Read a RunResult or a finished RunResultStreaming."""
    usage = result.context_wrapper.usage
    output = result.final_output
    return Outcome(
        agent=getattr(result.last_agent, "name", None),
        output_text=None
        if output is None
        else output
        if isinstance(output, str)
        else _text(output),
        usage={
            "requests": usage.requests,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        },
        parked=parked_identity(result.to_state()) if result.interruptions else None,
    )


def _text(output: Any) -> str:
    dump = getattr(output, "model_dump_json", None)
    if callable(dump):
        return str(dump())
    try:
        return json.dumps(output, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(output)


def parked_identity(state: RunState[Any, Any]) -> str:
    """The name under which a run waits for approval.

    The same for the state of a result, a copy of it, and one that was stored and read again.
    It is made of the SDK trace's id, or of the original input where tracing is off, and of the
    calls that wait: several runs may wait in one trace, and a run may wait more than once. The
    SDK carries a state forward as it resumes it; once nothing waits in it any more, it keeps the
    name it had before.
    """
    identity = _identity(state)
    if state.get_interruptions():
        if id(state) not in _names:
            weakref.finalize(state, _names.pop, id(state), None).atexit = False
        _names[id(state)] = identity
    return _names.get(id(state), identity)


_names: dict[int, str] = {}
"""The names of states that are in use, by ``id``: a state cannot be hashed."""


def _identity(state: RunState[Any, Any]) -> str:
    calls = [
        raw if isinstance(raw, dict) else raw.model_dump(exclude_none=True)
        for raw in (item.raw_item for item in state.get_interruptions())
    ]
    pending = sorted(digest([_identifying(call)]) for call in calls)
    try:
        stored = state.to_json(context_serializer=lambda _: {})
    except Exception:  # a state the SDK cannot serialise is still known by its calls
        return digest(pending)
    trace = (stored.get("trace") or {}).get("id")
    return digest([trace or stored.get("original_input"), pending])


def _identifying(call: dict[str, Any]) -> dict[str, Any]:
    return {name: call.get(name) for name in ("type", "call_id", "id", "name", "arguments")}
