"""Records, requests and turns can be printed: what they show is no word of a conversation."""

from __future__ import annotations

import dataclasses
import inspect
from datetime import UTC, datetime
from typing import Any

import pytest

from session_middleware import history
from session_middleware.stores import records

WORDS = "my secret words"
NOW = datetime.now(UTC)
WITH_WORDS = ("items", "texts", "item", "output", "output_text")
ITEM = {"role": "user", "content": WORDS}

SHOWN: list[Any] = [
    records.RunItems(1, 0, [WORDS]),
    records.AcquireRequest("s", NOW, input=records.RunItems(1, 0, [WORDS])),
    records.TurnRecord("s", 1, "completed", NOW, output_text=WORDS, items=[ITEM]),
    records.TurnEnd("completed", NOW, output_text=WORDS),
    records.Loaded([history.Turn(1, [ITEM], [WORDS])]),
    records.Acquired(records.Lease("s", 1, 1), loaded=records.Loaded([history.Turn(1, [ITEM])])),
    records.JournalEntry(1, 0, item=WORDS, output=WORDS),
]


@pytest.mark.parametrize("value", SHOWN, ids=lambda value: type(value).__name__)
def test_no_repr_shows_a_word(value: Any) -> None:
    """Logging a record by accident gives nothing away."""
    assert "secret" not in repr(value)
    assert "secret" not in str(value)


def test_no_record_shows_its_items() -> None:
    """No field for items or texts is part of a repr, in a record that is new as well."""
    shown = {
        record
        for _, record in inspect.getmembers(records, dataclasses.is_dataclass)
        if any(
            one.repr and one.type != "bool" and one.name in WITH_WORDS
            for one in dataclasses.fields(record)
        )
    }
    assert shown == set()
