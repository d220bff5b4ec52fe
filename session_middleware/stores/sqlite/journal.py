"""The journal of a turn's tool calls and its parked runs in SQLite.

Plain functions of a connection with a transaction open; the fence is the caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from session_middleware.stores.records import JournalEntry, TurnEnd
from session_middleware.stores.sql import (
    JOURNAL_COLUMNS,
    end_values,
    entry_of,
    journal_values,
    kept_values,
)

_COLUMNS = ", ".join(("session", "turn", *JOURNAL_COLUMNS))
_VALUES = ", ".join(f":{name}" for name in ("session", "turn", *JOURNAL_COLUMNS))
_KEEP = f"INSERT OR REPLACE INTO call ({_COLUMNS}) VALUES ({_VALUES})"  # noqa: S608 - of constants
_DROP = "DELETE FROM call WHERE session = ? AND turn = ?"
_CALLS = f"""
    SELECT {_COLUMNS} FROM call
    WHERE session = ? AND turn BETWEEN ? AND ? ORDER BY turn, run, place
"""  # noqa: S608 - of constants of this module
_PARK = """
    INSERT INTO park (identity, session, turn, open, since, calls, state)
    VALUES (?, ?, ?, 1, ?, ?, ?)
    ON CONFLICT (identity, session) DO UPDATE SET turn = excluded.turn, open = 1, alias_of = NULL,
        since = excluded.since, calls = excluded.calls, state = excluded.state
"""
_ALIAS = """
    INSERT INTO park (identity, session, turn, open, alias_of)
    SELECT ?1, session, turn, 1, coalesce(alias_of, identity) FROM park
    WHERE identity = ?2 AND session = ?3 AND identity <> ?1
    ON CONFLICT (identity, session) DO NOTHING
"""
_SETTLE = """
    UPDATE park SET open = 0, calls = NULL, state = NULL
    WHERE session = ?2 AND coalesce(alias_of, identity) = (
        SELECT coalesce(alias_of, identity) FROM park WHERE identity = ?1 AND session = ?2
    )
"""
_UNPARK = "DELETE FROM park WHERE session = ? AND turn = ?"


JournalRows = Sequence[dict[str, Any]]
"""Entries of a journal as ``journal_values`` made them."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a turn, encoded before there is a transaction.

    Attributes:
        values: of the turn's row.
        journal: what takes the place of the turn's journal; None: it stays as it is.
        parked: the identities of the runs that wait, each with its columns ``calls`` and ``state``.
    """

    how: TurnEnd
    values: dict[str, Any]
    journal: JournalRows | None
    parked: Sequence[tuple[str, str | None, str | None]]

    @classmethod
    def of(cls, how: TurnEnd) -> Self:
        """Encode it."""
        kept = {state.identity: state for state in how.states}
        return cls(
            how,
            end_values(how),
            None if how.journal is None else [journal_values(entry) for entry in how.journal],
            [(identity, *kept_values(kept.get(identity))) for identity in how.park],
        )


def keep(connection: sqlite3.Connection, session: int, turn: int, entries: JournalRows) -> None:
    """Store these entries, in place of those with the same run and place."""
    connection.executemany(
        _KEEP, [{"session": session, "turn": turn, **entry} for entry in entries]
    )


def entry_rows(
    connection: sqlite3.Connection, session: int, first: int, last: int
) -> Sequence[Mapping[str, Any]]:
    """The rows of the entries of these turns, in order; ``entries_of`` decodes them."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return cursor.execute(_CALLS, (session, first, last)).fetchall()


def entries_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[int, list[JournalEntry]]:
    """The entries of these rows, by turn."""
    entries: dict[int, list[JournalEntry]] = {}
    for row in rows:
        entries.setdefault(row["turn"], []).append(entry_of(row))
    return entries


def end(connection: sqlite3.Connection, session: int, turn: int, ending: Ending) -> None:
    """Store what the end of a turn says of its calls and its parked runs."""
    how = ending.how
    if ending.journal is not None:
        connection.execute(_DROP, (session, turn))
        keep(connection, session, turn, ending.journal)
    if how.discard:
        connection.execute(_UNPARK, (session, turn))
    if how.aliases:
        connection.executemany(_ALIAS, [(*alias, session) for alias in how.aliases])
    if how.settles:
        connection.executemany(_SETTLE, [(identity, session) for identity in how.settles])
    if ending.parked:
        since = ending.values["ended_at"]
        connection.executemany(
            _PARK,
            [(identity, session, turn, since, *state) for identity, *state in ending.parked],
        )
