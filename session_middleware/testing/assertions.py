"""Assertions on what a session holds, with messages that show all of it.

A message of a failed assertion holds the words of the conversation: it is for a test's output.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from session_middleware import history
from session_middleware.memory import SessionMemory
from session_middleware.memory_option import turns_of
from session_middleware.stores.protocol import TURNS
from session_middleware.stores.records import TurnRecord
from session_middleware.testing.refusals import Refused, check_responses
from session_middleware.testing.wire import text_of

__all__ = ["SessionContents", "assert_no_session", "assert_session"]

_LETTERS = {"function_call": "C", "function_call_output": "O", "reasoning": "R"}
_SHOWN = 20  # sessions that a message names
_LINE = 100  # characters of an item in a message


@dataclass(frozen=True, slots=True)
class SessionContents:
    """What a session held when it was read.

    Attributes:
        session_id: the session.
        items: its items, oldest first.
        records: the records of its turns, oldest first; empty for a memory without turns.
    """

    session_id: str
    items: list[dict[str, Any]]
    records: list[TurnRecord]

    @property
    def letters(self) -> str:
        """One letter an item, such as "U C O A".

        U is a user's message, C a call of a tool, O its output, R reasoning, A an answer; an item
        of another kind is shown as its role or type.
        """
        return letters(self.items)

    @property
    def texts(self) -> list[str]:
        """The text of every message, oldest first: what the user and the agents said."""
        return [text_of(item.get("content")) for item in self.items if _kind(item) == "message"]

    @property
    def states(self) -> list[str]:
        """The state of every turn, oldest first."""
        return [record.state for record in self.records]

    def faults(self) -> list[str]:
        """Why a provider would refuse the history; an empty list for a good one.

        A call without an output is no fault as long as a turn runs or waits for an approval.
        """
        found = [f"item {fault.position}: {fault.kind}" for fault in history.check(self.items)]
        if not found and not {"running", "awaiting_approval"} & set(self.states):
            try:
                check_responses(self.items)
            except Refused as refused:
                found.append(str(refused))
        return found

    def __str__(self) -> str:
        lines = [f"session {self.session_id!r} holds {len(self.items)} items: {self.letters}"]
        if not self.records:
            return "\n".join([*lines, *(f"  {_line(item)}" for item in self.items)])
        for record in self.records:
            error = f" ({record.error_type})" if record.error_type else ""
            lines.append(f"  turn {record.turn}, {record.state}{error}")
            lines += [f"    {_line(item)}" for item in record.items]
        return "\n".join(lines)


async def assert_session(
    memory: SessionMemory,
    session_id: str,
    *,
    texts: Sequence[str] | None = None,
    letters: str | None = None,
    items: Iterable[Mapping[str, Any]] | None = None,
    states: Sequence[str] | None = None,
    valid: bool = True,
) -> SessionContents:
    """Assert that a session is there and holds this; what is not given is not compared.

    Args:
        memory: the memory that holds the session.
        session_id: the session.
        texts: the text of every message, oldest first.
        letters: one letter an item, such as "U C O A": see ``SessionContents.letters``.
        items: the items themselves, oldest first.
        states: the state of every turn, oldest first, such as ["completed", "failed"].
        valid: a provider must accept the history. Default True; False compares the rest alone.

    Returns:
        What the session holds, for further assertions.

    Raises:
        AssertionError: the session is not there, or holds something else. The message says what
            was expected and shows the whole session.

    Example:
        await assert_session(memory, "user_alice", texts=["Hi", "Hello"], states=["completed"])
    """
    __tracebackhide__ = True
    if not await memory.session_exists(session_id):
        raise AssertionError(
            f"there is no session {session_id!r}; there are: {await _names(memory)}"
        )
    held = await _contents(memory, session_id)
    if items is not None:
        expected = [dict(item) for item in items]
        if held.items != expected:
            raise AssertionError(
                f"other items than expected\n{_difference(expected, held.items)}\n{held}"
            )
    _compare("texts", texts, held.texts, held)
    _compare("letters", letters, held.letters, held)
    _compare("states of turns", states, held.states, held)
    faults = held.faults() if valid else []
    if faults:
        raise AssertionError(f"a provider would refuse the history: {'; '.join(faults)}\n{held}")
    return held


async def assert_no_session(memory: SessionMemory, session_id: str) -> None:
    """Assert that the memory has no session of this id.

    Raises:
        AssertionError: there is one; the message shows it.

    Example:
        await assert_no_session(memory, "user_bob")
    """
    __tracebackhide__ = True
    if await memory.session_exists(session_id):
        held = await _contents(memory, session_id)
        raise AssertionError(f"there must be no session {session_id!r}\n{held}")


def letters(items: Iterable[Mapping[str, Any]]) -> str:
    """One letter an item, such as "U C O A": see ``SessionContents.letters``."""
    return " ".join(map(letter, items))


def letter(item: Mapping[str, Any]) -> str:
    """U, C, O, A or R, else the role of a message or the type of an item."""
    if _kind(item) == "message":
        role = str(item.get("role"))
        return {"user": "U", "assistant": "A"}.get(role, role)
    return _LETTERS.get(_kind(item), _kind(item))


async def _contents(memory: SessionMemory, session_id: str) -> SessionContents:
    records: list[TurnRecord] = []
    if TURNS in memory.capabilities:
        records = await turns_of(memory).turns(session_id)
    items = await memory.load_session(session_id)
    return SessionContents(session_id, items, records[::-1])


async def _names(memory: SessionMemory) -> str:
    found = await memory.list_sessions()
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (", ".join(map(repr, found[:_SHOWN])) or "none") + more


def _compare(what: str, expected: Any, got: Any, held: SessionContents) -> None:
    __tracebackhide__ = True
    if expected is None:
        return
    if not isinstance(expected, str):
        expected = list(expected)
    if expected != got:
        raise AssertionError(
            f"other {what} than expected\n  expected {expected!r}\n  got      {got!r}\n{held}"
        )


def _difference(expected: object, got: object) -> str:
    before, after = (
        json.dumps(one, indent=2, default=repr, ensure_ascii=False).splitlines()
        for one in (expected, got)
    )
    return "\n".join(difflib.unified_diff(before, after, "expected", "got", lineterm=""))


def _kind(item: Mapping[str, Any]) -> str:
    return str(item.get("type", "message"))


def _line(item: Mapping[str, Any]) -> str:
    """An item in one line of a message."""
    kind = _kind(item)
    if kind == "message":
        text = text_of(item.get("content"))
    elif kind == "function_call":
        text = f"{item.get('name')}({item.get('arguments')})"
    elif kind == "function_call_output":
        text = text_of(item.get("output"))
    else:
        text = json.dumps({name: item[name] for name in item if name != "type"}, default=repr)
    line = " ".join(f"{letter(item)}  {text}".splitlines())
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."
