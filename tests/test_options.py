"""The options of a turn: each has a row, and a wrong value fails when it is given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import session_middleware
from session_middleware import (
    InMemorySessionMemory,
    InvalidOption,
    installed,
    last_items,
    last_turns,
    session_scope,
    token_budget,
    with_session_memory,
)
from session_middleware.history import LastItems, LastTurns, TokenBudget
from session_middleware.options import ROWS, Options, TurnOptions, disabled


def through_a_decorator(**options: Any) -> None:
    """Give the options at decoration."""
    with_session_memory(memory=":memory:", **options)


def through_a_scope(**options: Any) -> None:
    """Give the options to a scope."""
    session_scope("s", memory=":memory:", **options)


def through_install(**options: Any) -> None:
    """Give the options to an installation."""
    with installed(memory=":memory:", **options):
        pass


FORMS = (through_a_decorator, through_a_scope, through_install)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"wait_timeout": "x"}, "wait_timeout must be a positive number of seconds or None, got 'x'"),
    ({"wait_timeout": 0}, "wait_timeout must be a positive number of seconds or None, got 0"),
    ({"turn_timeout": True}, "turn_timeout must be a positive number of seconds or None, got True"),
    ({"turn_timeout": float("nan")}, "turn_timeout must be .*, got nan"),
    ({"on_busy": "fail"}, "on_busy must be 'wait' or 'reject', got 'fail'"),
    ({"on_failure": None}, "on_failure must be 'keep' or 'discard', got None"),
    ({"on_unavailable": ["raise"]}, "on_unavailable must be .*, got a value of type list"),
    ({"on_departure": ""}, "on_departure must be 'finish' or 'cancel', got ''"),
    ({"redact": 5}, "redact must be a function from item to item or None, got 5"),
    ({"telemetry": 5}, "telemetry must be a dict of its settings or None, got 5"),
    ({"telemetry": {"provider": 1}}, "telemetry must have the entries .*, got 'provider'"),
    ({"window": 20}, r"window must be a window such as last_turns\(20\), .*, got 20"),
    ({"window": [last_turns(2), "x"]}, "window must be .*, got 'x'"),
    ({"window": last_turns}, r"such as last_turns\(20\), got last_turns itself: call it"),
    ({"window": LastTurns}, r"such as last_turns\(20\), got LastTurns itself: call it"),
    ({"window": [last_items]}, r"such as last_items\(100\), got last_items itself: call it"),
    ({"window": LastItems}, "got LastItems itself: call it"),
    ({"window": token_budget}, r"such as token_budget\(8000\), got token_budget itself: call it"),
    ({"window": TokenBudget}, "got TokenBudget itself: call it"),
    ({"nonsense": 1}, "an option must be one of memory, window, .*, got 'nonsense'"),
    ({"on_busy": "reject", "wait_timeout": 5}, "wait_timeout contradicts it: leave one out"),
]


@pytest.mark.parametrize("through", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize(("options", "message"), WRONG, ids=[why[:40] for _, why in WRONG])
def test_a_wrong_option_is_refused_when_it_is_given(
    through: Callable[..., None], options: dict[str, Any], message: str
) -> None:
    """The message names the option, what it must be, and what it got."""
    with pytest.raises(InvalidOption, match=message):
        through(**options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("window", [{"role": "user", "content": "my secret"}]),
        ("redact", {"content": "my secret"}),
        ("telemetry", ["my secret"]),
        ("on_busy", ["my secret"]),
        ("wait_timeout", ["my secret"]),
    ],
)
def test_no_error_shows_what_may_be_a_conversation(option: str, value: Any) -> None:
    """Of a value that may hold items, an error shows the type only."""
    with pytest.raises(InvalidOption) as refusal:
        through_a_decorator(**{option: value})
    assert "secret" not in str(refusal.value)


async def test_a_window_that_gets_a_history_does_not_print_it() -> None:
    """A maker of windows in a function of the user's, called with turns: no word is shown."""
    memory = InMemorySessionMemory()
    await memory.save_session("s", [{"role": "user", "content": "my secret"}])

    @with_session_memory(memory=memory, window=lambda turns: last_turns(turns))  # type: ignore[arg-type, return-value]
    async def chat() -> None:
        from agents import Runner

        from session_middleware.testing.models import local_agent

        await Runner.run(local_agent(), "Hi")

    with pytest.raises(InvalidOption, match="n must be a whole number") as refusal:
        await chat(session_id="s")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("made", [last_turns(10**30), last_items(10**30), token_budget(10**30)])
async def test_a_window_of_any_size(each_memory: Any, made: Any) -> None:
    """A window larger than anything that is stored is all of it."""
    await each_memory.save_session("s", [{"role": "user", "content": "Hi"}])
    seen: list[Any] = []

    async def count() -> None:
        from agents import Runner

        from session_middleware.testing.models import local_agent

        await Runner.run(local_agent(), "Hi again")
        seen.extend(await each_memory.load_session("s"))

    await with_session_memory(count, memory=each_memory, window=made)(session_id="s")
    assert len(seen) == 3


# --- the switch ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "is_off"),
    [(on, True) for on in ("1", "true", "yes", "on", "TRUE", " On ")]
    + [(off, False) for off in ("", "0", "false", "no", "off", "False")],
)
def test_the_switch(monkeypatch: pytest.MonkeyPatch, value: str, is_off: bool) -> None:
    """SESSION_MIDDLEWARE_DISABLED understands these words."""
    monkeypatch.setenv("SESSION_MIDDLEWARE_DISABLED", value)
    assert disabled() is is_off


@pytest.mark.parametrize("through", FORMS, ids=lambda form: form.__name__)
def test_the_switch_has_no_third_position(
    monkeypatch: pytest.MonkeyPatch, through: Callable[..., None]
) -> None:
    """Any other word is an error in every form."""
    monkeypatch.setenv("SESSION_MIDDLEWARE_DISABLED", "maybe")
    with pytest.raises(InvalidOption, match=r"SESSION_MIDDLEWARE_DISABLED must be .*, got 'maybe'"):
        through()


# --- documentation ---------------------------------------------------------------------------


def test_every_option_has_a_row_a_type_and_a_default() -> None:
    """Each option is in the table and in TurnOptions, and its sentence names its default."""
    assert set(ROWS) == set(TurnOptions.__annotations__)
    for name, row in ROWS.items():
        says, default = row.metadata["says"], getattr(Options(), name)
        assert re.search(r"Default \S", says), name
        if isinstance(default, str):
            assert f'Default "{default}"' in says, name


@pytest.mark.parametrize("name", ROWS)
def test_every_default_is_in_a_public_docstring(name: str) -> None:
    """help(with_session_memory) says what each option does and what it is by default."""
    told = inspect.getdoc(session_middleware.with_session_memory)
    assert told is not None
    words = " ".join(told.split())
    assert f"{name}: {ROWS[name].metadata['says']}" in words
