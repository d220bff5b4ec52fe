"""The options of a turn: one row each, checked when the user gives them.

The same options serve ``with_session_memory``, ``session_scope`` and ``install``. A name that is
unknown, a value of the wrong kind and a contradiction raise here, never during a run. A new
option is a field of ``Options``, with its default, its check and its sentence, and a line in
``TurnOptions`` for type checkers.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from session_middleware import history
from session_middleware.effects import OnUnknown, Rerun
from session_middleware.errors import ConflictingMemory, InvalidOption
from session_middleware.history import Window
from session_middleware.memory import SessionMemory, check_session_id
from session_middleware.memory_option import (
    MemoryOption,
    default_of_a_test,
    resolve_memory,
    turns_of,
)
from session_middleware.stores.protocol import TURNS, TurnStore
from session_middleware.stores.records import Item
from session_middleware.telemetry import Telemetry, TelemetrySettings
from session_middleware.telemetry.method import note_settings

Redact: TypeAlias = Callable[[Item], Item | None]


# --- checks: each returns the value to use ---------------------------------------------------


def _shown(value: object) -> str:
    """A value in an error: of anything that may hold words of a conversation, only the type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)[:60]
    return f"a value of type {type(value).__name__}"


def _refused(name: str, must_be: str, value: object) -> InvalidOption:
    return InvalidOption(f"{name} must be {must_be}, got {_shown(value)}")


def _one_of(*choices: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in choices:
            raise InvalidOption(
                f"{name} must be {' or '.join(map(repr, choices))}, got {_shown(value)}"
            )
        return value

    return check


def _one_of_or_none(*choices: str) -> Callable[[str, Any], Any]:
    check = _one_of(*choices)
    return lambda name, value: None if value is None else check(name, value)


def _seconds(name: str, value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and value > 0):
        raise InvalidOption(
            f"{name} must be a positive number of seconds or None, got {_shown(value)}"
        )
    return value


def _tools(name: str, value: Any) -> Any:
    if value is None or callable(value):
        return value
    if isinstance(value, (list, tuple, set, frozenset)) and all(
        isinstance(one, str) for one in value
    ):
        return frozenset(value)
    raise InvalidOption(
        f"{name} must be a list of tool names, a function of a tool's name or None, "
        f"got {_shown(value)}"
    )


def _count(name: str, value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refused(name, "a whole number of at least 1", value)
    return value


def _flag(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise _refused(name, "True, False or None", value)
    return value


def _function(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise InvalidOption(
            f"{name} must be a function from item to item or None, got {_shown(value)}"
        )
    return value


_MAKERS = {
    history.last_turns: "last_turns(20)",
    history.LastTurns: "last_turns(20)",
    history.last_items: "last_items(100)",
    history.LastItems: "last_items(100)",
    history.token_budget: "token_budget(8000)",
    history.TokenBudget: "token_budget(8000)",
}


def _window(name: str, value: Any) -> Any:
    for part in value if isinstance(value, list) else [value]:
        if inspect.isroutine(part) or inspect.isclass(part):
            example = _MAKERS.get(part)
            if example is not None:
                raise InvalidOption(
                    f"{name} must be a window such as {example}, got {part.__name__} itself: "
                    "call it"
                )
        if part is not None and not callable(part):
            raise _refused(name, "a window such as last_turns(20), a list of them, or None", part)
    return value


def _telemetry(name: str, value: Any) -> Telemetry:
    if value is None:
        return Telemetry()
    if isinstance(value, Telemetry):
        return value
    if isinstance(value, dict):
        unknown = sorted(map(str, value.keys() - {one.name for one in _telemetry_fields()}))
        if not unknown:
            return Telemetry(**value)
        raise InvalidOption(
            f"{name} must have the entries {', '.join(one.name for one in _telemetry_fields())}, "
            f"got {unknown[0]!r}"
        )
    raise _refused(name, "a dict of its settings or None", value)


def _telemetry_fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(Telemetry)


# --- the options -----------------------------------------------------------------------------


class TurnOptions(TypedDict, total=False):
    """The options every form takes; ``Options`` says what each means."""

    window: Window | list[Window] | None
    redact: Redact | None
    on_busy: Literal["wait", "reject"]
    wait_timeout: float | None
    max_waiting: int
    turn_timeout: float | None
    on_failure: Literal["keep", "discard"]
    on_unavailable: Literal["raise", "forget"]
    on_departure: Literal["finish", "cancel"] | None
    on_unknown: OnUnknown
    rerun: Rerun | None
    unknown_state: Literal["refuse", "adopt"]
    keep_state: bool | None
    telemetry: TelemetrySettings | Telemetry | None


def _option(default: Any, check: Callable[[str, Any], Any], says: str) -> Any:
    """A row: the default, the check of a value, and a sentence for the docs."""
    metadata = {"check": check, "says": says}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Options:
    """The checked options of one decorated function, scope or installation.

    Attributes:
        memory: the memory that holds the sessions; None: calls pass through untouched.
        by_default: ``memory=True`` named the memory, so a test may put another in its place.
        capabilities: what ``turns`` can do: see ``stores.protocol``.
    """

    memory: SessionMemory | None = None
    by_default: bool = False

    window: Any = _option(
        None, _window, "Which turns of the history the model sees. Default None: all of them."
    )
    redact: Redact | None = _option(
        None,
        _function,
        "A function from an item to the item that is stored, or to None to leave it out. "
        "Default None: items are stored as they are.",
    )
    on_busy: Literal["wait", "reject"] = _option(
        "wait",
        _one_of("wait", "reject"),
        'Wait for a session that another turn holds, or raise SessionBusy at once. Default "wait".',
    )
    wait_timeout: float | None = _option(
        None,
        _seconds,
        "Seconds to wait for a busy session before SessionBusy. Default None: twice the memory's "
        "lease, 60 s.",
    )
    max_waiting: int = _option(
        1000,
        _count,
        "How many turns of this process may wait for one session; one more gets SessionBusy at "
        "once. Default 1000.",
    )
    turn_timeout: float | None = _option(
        None, _seconds, "Seconds after which a turn loses its session. Default None: no limit."
    )
    on_failure: Literal["keep", "discard"] = _option(
        "keep",
        _one_of("keep", "discard"),
        'Keep or discard the items of a turn that failed or was cancelled. Default "keep".',
    )
    on_unavailable: Literal["raise", "forget"] = _option(
        "raise",
        _one_of("raise", "forget"),
        "Raise MemoryUnavailable when the storage fails, or go on without memory and log it. "
        'Default "raise".',
    )
    on_departure: Literal["finish", "cancel"] | None = _option(
        None,
        _one_of_or_none("finish", "cancel"),
        'Whether a run finishes ("finish") or is cancelled ("cancel") when its reader leaves '
        "before the end. Default None: a streamed run finishes, a decorated async generator is "
        "cancelled.",
    )
    on_unknown: OnUnknown = _option(
        "tell",
        _one_of("tell", "raise", "rerun"),
        "What becomes of a tool call that began in an earlier attempt and did not end: tell the "
        'model, raise OutcomeUnknown, or let the model make it again. Default "tell".',
    )
    rerun: Rerun | None = _option(
        None,
        _tools,
        "The names of tools that may simply run again, or a function of a tool's name. Default "
        "None: none may.",
    )
    unknown_state: Literal["refuse", "adopt"] = _option(
        "refuse",
        _one_of("refuse", "adopt"),
        'Refuse to resume a run that this memory has not parked, or adopt it. Default "refuse".',
    )
    keep_state: bool | None = _option(
        None,
        _flag,
        "Whether the memory keeps the state of a run that waits for approval, so that any process "
        "can restore it. Default None: yes, unless redact is given, which the state knows "
        "nothing of.",
    )
    telemetry: Telemetry = _option(
        Telemetry,
        _telemetry,
        "A dict with tracer_provider, meter_provider, session_id, baggage or token_counts. "
        "Default None: the global providers.",
    )

    _turns: TurnStore | None = dataclasses.field(init=False, repr=False, compare=False)
    capabilities: frozenset[str] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        turns = None if self.memory is None else turns_of(self.memory)
        object.__setattr__(self, "_turns", turns)
        object.__setattr__(self, "capabilities", turns.capabilities if turns else frozenset())
        if turns is not None:
            note_settings(turns.identity, self.telemetry)

    @property
    def keeps_state(self) -> bool:
        """Whether the memory keeps the state of a run that is parked."""
        return self.redact is None if self.keep_state is None else self.keep_state

    @property
    def turns(self) -> TurnStore:
        """The memory as one that keeps turns."""
        assert self._turns is not None  # noqa: S101 - callers ask only where memory is on
        return self._turns

    def full_id(self, session_id: str) -> str:
        """The id under which the memory stores the session.

        Raises:
            InvalidSessionId: the id cannot name a session.
        """
        memory = self.memory
        return check_session_id(session_id) if memory is None else memory.full_id(session_id)

    def with_memory(self, memory: object) -> Options:
        """The same options for another memory.

        Raises:
            InvalidOption, InvalidMemoryUrl, ConflictingMemory: as for ``make_options``.
        """
        changed = dataclasses.replace(
            self, memory=resolve_memory(memory), by_default=memory is True
        )
        _check_abilities(changed)
        return changed

    def in_force(self) -> Options:
        """The options as a call is to take them: in a test, with the memory of that test."""
        memory = default_of_a_test() if self.by_default else None
        return self if memory is None else self.with_memory(memory)

    def __reduce__(self) -> Any:
        """Options are sent to other processes by what was given, never by what was made of it."""
        given = {name: getattr(self, name) for name in ROWS}
        return _made_again, (self.memory, self.by_default, given)


def _made_again(memory: SessionMemory | None, by_default: bool, given: dict[str, Any]) -> Options:
    return Options(memory, by_default, **given)


ROWS = {one.name: one for one in dataclasses.fields(Options) if "check" in one.metadata}
"""The options by name; ``metadata["says"]`` is the sentence of each."""


def make_options(memory: MemoryOption, options: dict[str, Any]) -> Options:
    """Check what the user gave and return it as Options.

    Raises:
        InvalidOption: a name is unknown, a value is of the wrong kind, or two contradict each
            other.
        InvalidMemoryUrl: the URL of the memory has a scheme or an option that no memory has.
        ConflictingMemory: the memory lacks what an option needs.
    """
    disabled()  # its variable is wrong or right from the beginning
    unknown = sorted(options.keys() - ROWS.keys())
    if unknown:
        raise InvalidOption(
            f"an option must be one of memory, {', '.join(ROWS)}, got {unknown[0]!r}"
        )
    checked = {name: ROWS[name].metadata["check"](name, value) for name, value in options.items()}
    if checked.get("on_busy") == "reject" and checked.get("wait_timeout") is not None:
        raise InvalidOption(
            "on_busy='reject' never waits, so wait_timeout contradicts it: leave one out"
        )
    made = Options(resolve_memory(memory), memory is True, **checked)
    _check_abilities(made)
    return made


def _check_abilities(options: Options) -> None:
    memory = options.memory
    if memory is not None and options.on_failure == "discard" and TURNS not in memory.capabilities:
        raise ConflictingMemory(
            f"on_failure='discard' needs a memory with the capability {TURNS!r}, which "
            f"{type(memory).__name__} does not have: use SQLiteSessionMemory, or leave it out"
        )


_SWITCH = {"1": True, "true": True, "yes": True, "on": True} | dict.fromkeys(
    ("", "0", "false", "no", "off"), False
)


def disabled() -> bool:
    """Whether SESSION_MIDDLEWARE_DISABLED switches everything off.

    Raises:
        InvalidOption: the variable has another value than 1, true, yes, on, 0, false, no or off.
    """
    given = os.environ.get("SESSION_MIDDLEWARE_DISABLED", "")
    value = _SWITCH.get(given.strip().lower())
    if value is None:
        raise InvalidOption(
            "SESSION_MIDDLEWARE_DISABLED must be 1, true, yes or on, or else 0, false, no, off or "
            f"empty, got {given!r}"
        )
    return value
