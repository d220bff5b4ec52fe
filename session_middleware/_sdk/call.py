"""One call of a Runner method: its arguments by name, and what a session changes in them.

Nothing here knows of stores, turns or telemetry.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import operator
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from agents import ItemHelpers, RunConfig, RunState
from agents.run import CallModelData, ModelInputData

from session_middleware.errors import SessionMemoryError

PLACES = ("starting_agent", "input")
"""The arguments that Runner's methods take by position."""

USED = ("session", "hooks", "run_config")
"""The arguments that a run in a session is given."""

SERVER_STATE = ("conversation_id", "previous_response_id", "auto_previous_response_id")


@dataclass(eq=False, slots=True)
class RunCall:
    """One call of a Runner method: which one, what does it, and its arguments.

    Attributes:
        method: the name of the Runner method.
        proceed: the callable that makes the run.
        arguments: the arguments by name.
        places: the names of those that were given by position, which are handed on so.
        more: further arguments by position, which have no name here.
        resumes: whether the input is the state of an interrupted run.
    """

    method: str
    proceed: Callable[..., Any]
    arguments: dict[str, Any]
    places: tuple[str, ...] = ()
    more: tuple[Any, ...] = ()
    digest: str | None = None
    resumes: bool = field(init=False)

    def __post_init__(self) -> None:
        self.resumes = isinstance(self.input, RunState)

    @property
    def input(self) -> Any:
        return self.arguments.get("input")

    @property
    def starting_agent(self) -> Any:
        return self.arguments.get("starting_agent")

    @property
    def context(self) -> Any:
        """The user's context object of the run."""
        return self.arguments.get("context")

    @property
    def session(self) -> Any:
        """The session that the SDK is given for the run."""
        return self.arguments.get("session")

    @property
    def hooks(self) -> Any:
        """The RunHooks that the SDK is given for the run."""
        return self.arguments.get("hooks")

    @property
    def server_state(self) -> str | None:
        """The argument that leaves the history to the provider, if one is given."""
        return next((name for name in SERVER_STATE if self.arguments.get(name)), None)

    @property
    def workflow_name(self) -> str:
        return str(setting(self, "workflow_name") or RunConfig.workflow_name)

    def go(self) -> Any:
        """Make the call."""
        named = self.arguments
        if not self.places:
            return self.proceed(**named)
        rest = {name: value for name, value in named.items() if name not in self.places}
        return self.proceed(*(named[name] for name in self.places), *self.more, **rest)

    def equip(self, session: Any, hooks: Any) -> None:
        """Give the run a session and hooks.

        Raises:
            SessionMemoryError: the method was replaced by a function that takes no session.
        """
        if not _signature(self.proceed).takes_session:
            raise SessionMemoryError(
                f"a run in a session needs {', '.join(f'{name}=' for name in USED)}, and "
                f"Runner.{self.method} was replaced by {described(self.proceed)}, which does not "
                "take them: let it take **kwargs, or call it outside of the session"
            )
        self.arguments["session"] = session
        self.arguments["hooks"] = hooks

    def drop_session(self) -> None:
        """Make the run without a session."""
        self.arguments["session"] = None

    def replace_input(self, given: Any) -> None:
        """Give the run other new input, or another state to resume."""
        self.arguments["input"] = given
        self.resumes = isinstance(given, RunState)

    def continue_with(self, agent: Any, context: Any = None) -> None:
        """Let the run go on from what its session holds, with no new input.

        Args:
            agent: the one that speaks next.
            context: the user's context object, unless the call gives one.
        """
        self.replace_input([])
        self.arguments["starting_agent"] = agent
        if context is not None and self.context is None:
            self.arguments["context"] = context

    def is_handed_on_as(self, other: RunCall) -> bool:
        """Whether the other call is this one, as somebody in between makes it."""
        return (
            self.method == other.method
            and self.starting_agent is other.starting_agent
            and self.input is other.input
        )

    def forget(self) -> None:
        """Let go of the arguments, once the run is over."""
        self.arguments = {}
        self.resumes = False
        self.places = self.more = ()


def given_session(kwargs: dict[str, Any]) -> Any:
    """The session among the keywords of a call, before they are bound."""
    return kwargs.get("session")


def given_context(kwargs: dict[str, Any]) -> Any:
    """The user's context object among the keywords of a call."""
    return kwargs.get("context")


def underlying_session(session: Any) -> Any:
    """The session that this one wraps, as the SDK's wrappers name it; None where it wraps none."""
    try:
        return getattr(session, "underlying_session", None)
    except Exception:  # a property of somebody's session
        return None


def bind(method: str, proceed: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> RunCall:
    """Name a call's arguments.

    Raises:
        TypeError: the SDK's own, for arguments it does not take.
    """
    signature = _signature(proceed)
    if not signature.takes(args, kwargs):
        proceed(*args, **kwargs)  # cannot be called so either, and says it in its own words
    named = dict(zip(signature.places, args, strict=False))
    return RunCall(method, proceed, named | kwargs, tuple(named), tuple(args[len(named) :]))


class _Signature:
    """What a method takes; binding by ``inspect`` alone takes a multiple of the time.

    Attributes:
        parameters: by name; None for a callable whose parameters nobody can tell.
        places: the names of arguments by position.
        takes_session: whether it can be given what a run in a session needs.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        try:
            self._of_method: inspect.Signature | None = inspect.signature(method)
        except (TypeError, ValueError):
            self._of_method = None
        self.parameters = None if self._of_method is None else self._of_method.parameters
        parameters = [] if self.parameters is None else [*self.parameters.values()]
        ordinary = inspect.Parameter.POSITIONAL_OR_KEYWORD
        by_name = {ordinary, inspect.Parameter.KEYWORD_ONLY}
        own = tuple(one.name for one in parameters if one.kind is ordinary)
        self.places = own if PLACES[-1] in own else PLACES
        self._is_plain = own == self.places and all(one.kind in by_name for one in parameters)
        self.takes_session = takes_session(self.parameters)
        self._needed = {one.name for one in parameters if one.default is one.empty}

    def takes(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether the method can be called so."""
        if self._of_method is None or self.parameters is None:
            return True
        if self._is_plain and len(args) <= len(self.places):
            names = {*self.places[: len(args)], *kwargs}
            if len(names) == len(args) + len(kwargs):
                return self._needed <= names and names <= self.parameters.keys()
        try:
            self._of_method.bind(*args, **kwargs)
        except TypeError:
            return False
        return True


def takes_session(parameters: Mapping[str, inspect.Parameter] | None) -> bool:
    """Whether a method with these parameters can be given what a run in a session needs."""
    if parameters is None:
        return True
    any_name = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return any_name or parameters.keys() >= {*USED}


def described(found: object) -> str:
    """What stands in a method's place, for an error: its kind, name and module, no value."""
    name = getattr(found, "__qualname__", None) or getattr(found, "__name__", None)
    module = getattr(found, "__module__", None)
    kind = type(found).__name__
    if not isinstance(name, str):
        return f"an object of type {kind}"
    return f"the {kind} {name}" + (f" of {module}" if isinstance(module, str) else "")


class Transparent:
    """The mark of a wrapper that takes exactly what the callable takes that it is around."""

    __slots__ = ()


_signatures: dict[FunctionType, _Signature] = {}


def _signature(method: Callable[..., Any]) -> _Signature:
    """The signature of a method, worked out once for its function."""
    while issubclass(type(method), Transparent):
        method = method.__wrapped__  # type: ignore[attr-defined] # wrapt's
    function = getattr(method, "__func__", None) if type(method) is MethodType else method
    if type(function) is not FunctionType:  # a wrapper's may be another than its function's
        return _Signature(method)
    signature = _signatures.get(function)
    if signature is None:
        signature = _signatures[function] = _Signature(method)
    return signature


def new_items(value: Any) -> Sequence[Any]:
    """The items of a run's new input."""
    if value is None:  # a function in a method's place may call its input something else
        return []
    return value if isinstance(value, list) else ItemHelpers.input_to_new_input_list(value)


def go_gated(call: RunCall, gate: Callable[[], Awaitable[None]]) -> Any:
    """Call ``run_streamed`` so that its run loop begins only after ``gate()``.

    A resumed run loads no history, so nothing of ours would be asked before its first tool. The
    loop's task factory is ours for the length of the call, which makes just that one task. Where
    ``gate()`` changes the input or the agent, the call is made again with those.
    """
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    called_with = _essence(call)
    results: list[Any] = []
    fresh: dict[str, Any] = {}

    async def gated(run_loop: Coroutine[Any, Any, Any]) -> Any:
        try:
            await asyncio.sleep(0)  # until whoever awaits the run loop does so
            await gate()
            if all(map(operator.is_, _essence(call), called_with)):
                following: Awaitable[Any] = run_loop
            else:
                run_loop.close()
                following = _go_in_place_of(results[0], fresh, call)
        except BaseException:
            run_loop.close()
            results[0].cancel()  # wakes up whoever waits for events
            raise
        return await following

    def factory(of: Any, run_loop: Any, **options: Any) -> Any:
        work = gated(run_loop)
        return before(of, work, **options) if before else asyncio.Task(work, loop=of, **options)

    loop.set_task_factory(factory)
    try:
        results.append(call.go())
    finally:
        loop.set_task_factory(before)
    fresh.update(getattr(results[0], "__dict__", {}))  # a mock's result may have none
    return results[0]


def _essence(call: RunCall) -> tuple[Any, Any]:
    return call.input, call.starting_agent


def _go_in_place_of(result: Any, fresh: dict[str, Any], call: RunCall) -> Awaitable[Any]:
    """Make a streamed call again whose first result is in its reader's hands; returns its run loop.

    From now on both results are one, with the attributes of the second but for those by which
    the reader waits and that changed since the first was made.

    Args:
        fresh: the attributes of the first result when it was made.
    """
    second = call.go()
    run_loop: Awaitable[Any] = second.run_loop_task
    one = vars(result)
    waits = (asyncio.Queue, asyncio.Event, asyncio.Future)
    kept = {
        name
        for name, value in one.items()
        if isinstance(value, waits) or name not in fresh or value is not fresh[name]
    }
    one.update({name: value for name, value in vars(second).items() if name not in kept})
    second.__dict__ = one
    one["_made_again"] = second  # which lets go of its agents when it is freed
    return run_loop


def drop_new_input(call: RunCall, skipped: Callable[[], int | None]) -> None:
    """Let the run leave out the first ``skipped()`` items of its new input; None: all of them.

    For a streamed run, whose input must be handed over before anything can be awaited.
    """
    given = setting(call, "session_input_callback")

    async def merge(history: list[Any], new: list[Any]) -> list[Any]:
        skip = skipped()
        new = [] if skip is None else new[skip:]
        if given is None or not new:
            return history + new
        merged = given(history, new)
        return list(await merged if inspect.isawaitable(merged) else merged)

    change_settings(call, session_input_callback=merge)


def merges_input(call: RunCall) -> bool:
    """Whether the call's own ``session_input_callback`` decides what is stored of its input."""
    return setting(call, "session_input_callback") is not None


def filter_model_input(call: RunCall, change: Callable[[list[Any]], list[Any]]) -> None:
    """Let ``change`` have the last word on what each model call of the run is given.

    The user's own ``call_model_input_filter`` goes first.
    """
    given = setting(call, "call_model_input_filter")

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

    change_settings(call, call_model_input_filter=filtered)


def setting(call: RunCall, name: str) -> Any:
    """A setting of the call's run config, which may be an object, a dict or none."""
    config = call.arguments.get("run_config")
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def change_settings(call: RunCall, **changes: Any) -> None:
    """Change the call's run config; a dict or none stays a dict.

    Making an object of them would change who closes the model provider.
    """
    config = call.arguments.get("run_config")
    if config is None or isinstance(config, dict):
        call.arguments["run_config"] = {**(config or {}), **changes}
    else:
        call.arguments["run_config"] = dataclasses.replace(config, **changes)
