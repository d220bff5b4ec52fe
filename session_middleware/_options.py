"""What a caller may say about a session, checked once, when it is said.

The same options serve ``with_session_memory``, ``session_scope`` and ``install``. Whatever is
unknown, of the wrong kind or contradicts something else fails here, not in a run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from session_middleware.errors import ConflictingMemory, InvalidOption
from session_middleware.history import Window
from session_middleware.memory import Item, SessionMemory, SupportsTurns, SupportsTurnWrites
from session_middleware.stores import shared
from session_middleware.stores.flat import FlatTurns
from session_middleware.telemetry import Telemetry, TelemetrySettings

DEFAULT_MEMORY = "agent_sessions.db"

Redact: TypeAlias = Callable[[Item], Item | None]
MemoryOption: TypeAlias = SessionMemory | str | bool | None


class TurnOptions(TypedDict, total=False):
    """The options every form takes; ``Options`` says what each means."""

    window: Window | list[Window] | None
    redact: Redact | None
    on_busy: Literal["wait", "reject"]
    wait_timeout: float | None
    turn_timeout: float | None
    on_failure: Literal["keep", "discard"]
    on_unavailable: Literal["raise", "forget"]
    on_departure: Literal["finish", "cancel"]
    telemetry: TelemetrySettings | Telemetry | None


@dataclass(frozen=True, slots=True)
class Options:
    """The checked options of one decorated function, scope or installation.

    Attributes:
        memory: where the history is kept; None: the call passes through untouched.
        window: which part of the history the model sees.
        redact: item -> item, or None to leave it out, before it is stored.
        on_busy: wait for a session that another turn holds, or reject with SessionBusy.
        wait_timeout: seconds to wait for a busy session; default twice the memory's lease.
        turn_timeout: seconds after which a turn loses its session; default none.
        on_failure: keep what a failed or cancelled turn stored, or discard it.
        on_unavailable: raise when the memory fails, or forget: go on without memory, loudly.
        on_departure: a streamed run whose consumer leaves finishes, or is cancelled.
        telemetry: providers, a mapping for the session id, baggage.
        turn_writes: the memory, where it stores items and the end of their turn at once.
        reads_with_taking, stores_with_taking: what the memory can do when it is taken.
    """

    memory: SessionMemory | None = None
    window: Any = None
    redact: Redact | None = None
    on_busy: Literal["wait", "reject"] = "wait"
    wait_timeout: float | None = None
    turn_timeout: float | None = None
    on_failure: Literal["keep", "discard"] = "keep"
    on_unavailable: Literal["raise", "forget"] = "raise"
    on_departure: Literal["finish", "cancel"] = "finish"
    telemetry: Telemetry = dataclasses.field(default_factory=Telemetry)

    _turns: SupportsTurns | None = dataclasses.field(init=False, repr=False, compare=False)
    turn_writes: SupportsTurnWrites | None = dataclasses.field(
        init=False, repr=False, compare=False
    )
    reads_with_taking: bool = dataclasses.field(init=False, repr=False, compare=False)
    stores_with_taking: bool = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once here: asking a memory what it can do, with isinstance, is slow.
        turns = None if self.memory is None else turns_of(self.memory)
        object.__setattr__(self, "_turns", turns)
        writes = turns if issubclass(type(turns), SupportsTurnWrites) else None
        object.__setattr__(self, "turn_writes", writes)
        reads = getattr(type(turns), "reads_with_taking", False)
        object.__setattr__(self, "reads_with_taking", reads)
        # What was stored too early must be taken back, which write_turn does.
        stores = writes is not None and getattr(type(turns), "stores_with_taking", False)
        object.__setattr__(self, "stores_with_taking", stores)

    @property
    def turns(self) -> SupportsTurns:
        """The memory as one that keeps turns."""
        assert self._turns is not None  # noqa: S101 - callers ask only where memory is on
        return self._turns

    def with_memory(self, memory: SessionMemory | None) -> Options:
        """The same options for another memory."""
        changed = dataclasses.replace(self, memory=memory)
        _check_abilities(changed)
        return changed


_CHOICES = {
    "on_busy": ("wait", "reject"),
    "on_failure": ("keep", "discard"),
    "on_unavailable": ("raise", "forget"),
    "on_departure": ("finish", "cancel"),
}
_NAMES = frozenset(field.name for field in dataclasses.fields(Options) if field.init)


def make_options(memory: MemoryOption, options: dict[str, Any]) -> Options:
    """Check what the caller said and return it as Options.

    Raises:
        InvalidOption: unknown name, wrong kind of value, or a contradiction.
        InvalidMemoryUrl: a URL nobody can open.
        ConflictingMemory: an option the memory cannot serve.
    """
    unknown = sorted(set(options) - _NAMES)
    if unknown:
        raise InvalidOption(
            f"unknown option {unknown[0]!r}; there are: {', '.join(sorted(_NAMES))}"
        )
    for name, choices in _CHOICES.items():
        if name in options and options[name] not in choices:
            raise InvalidOption(
                f"{name} is one of {', '.join(map(repr, choices))}, not {options[name]!r}"
            )
    for name in ("wait_timeout", "turn_timeout"):
        seconds = options.get(name)
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0
        ):
            raise InvalidOption(f"{name} is a number of seconds above 0, or None, not {seconds!r}")
    if options.get("on_busy") == "reject" and options.get("wait_timeout") is not None:
        raise InvalidOption(
            "on_busy='reject' never waits, so wait_timeout contradicts it: leave one out"
        )
    redact = options.get("redact")
    if redact is not None and not callable(redact):
        raise InvalidOption(f"redact is a function item -> item or None, not {redact!r}")
    window = options.get("window")
    for part in window if isinstance(window, list) else [window]:
        if part is not None and not callable(part):
            raise InvalidOption(f"window is made of callables such as last_turns(20), not {part!r}")
    telemetry = options.get("telemetry")
    if telemetry is None:
        options = {**options, "telemetry": Telemetry()}
    elif isinstance(telemetry, dict):
        try:
            options = {**options, "telemetry": Telemetry(**telemetry)}
        except TypeError as error:
            raise InvalidOption(
                f"telemetry takes tracer_provider, meter_provider, session_id and baggage: {error}"
            ) from error
    elif not isinstance(telemetry, Telemetry):
        raise InvalidOption(f"telemetry is a dict of its settings, not {telemetry!r}")
    made = Options(memory=resolve_memory(memory), **options)
    _check_abilities(made)
    return made


def _check_abilities(options: Options) -> None:
    memory = options.memory
    if memory is None or isinstance(memory, SupportsTurns):
        return
    if options.on_failure == "discard":
        raise ConflictingMemory(
            f"on_failure='discard' needs a memory that keeps turns; {type(memory).__name__} has "
            "only the six methods of SessionMemory. Implement SupportsTurns, or leave it out."
        )


def resolve_memory(memory: object) -> SessionMemory | None:
    """What ``memory=`` names: None, the default, a URL's memory, or the memory itself."""
    if memory is None or memory is False:
        return None
    if memory is True:
        return shared(os.environ.get("SESSION_MIDDLEWARE_MEMORY") or f"sqlite:///{DEFAULT_MEMORY}")
    if isinstance(memory, str):
        return shared(memory)
    if isinstance(memory, SessionMemory):
        return memory
    if isinstance(memory, type) and issubclass(memory, SessionMemory):
        raise InvalidOption(f"memory is the class {memory.__name__}: pass an instance of it")
    raise InvalidOption(
        "memory is True, None, a URL such as 'sqlite:///chat.db', or a SessionMemory, "
        f"not {memory!r}"
    )


def turns_of(memory: SessionMemory) -> SupportsTurns:
    """The memory itself where it keeps turns, else an adapter for this process."""
    return memory if isinstance(memory, SupportsTurns) else FlatTurns.of(memory)


def identity_of(memory: SessionMemory) -> Hashable:
    """Equal for two memories that share one storage in this process."""
    return turns_of(memory).identity


def disabled() -> bool:
    """Whether SESSION_MIDDLEWARE_DISABLED switches everything off."""
    return os.environ.get("SESSION_MIDDLEWARE_DISABLED", "") not in ("", "0")
