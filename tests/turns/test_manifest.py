"""The manifest of a turn: what its runs were given, what they spent, and where its spans are."""

from __future__ import annotations

import pytest
from agents.usage import Usage
from openai.types.responses.response_usage import OutputTokensDetails

from session_middleware._turns import manifest as manifests
from session_middleware._turns.manifest import TurnManifest, digest_of, usage_of
from session_middleware.history import Turn


def usage(requests: int, tokens: int = 0) -> Usage:
    return Usage(requests=requests, input_tokens=tokens, total_tokens=tokens)


def test_usage_is_what_was_spent_since_the_run_began() -> None:
    """A context of the user's may have counted before; each is counted once, however often seen."""
    manifest = TurnManifest()
    first, second = usage(3, 30), usage(0)
    manifest.watch(first)
    first.add(usage(2, 7))
    manifest.watch(first)
    manifest.watch(second)
    second.add(usage(1, 5))
    spent = manifest.spent()
    assert (spent["requests"], spent["input_tokens"], spent["total_tokens"]) == (3, 12, 12)


def test_what_was_spent_is_no_part_where_it_is_nothing() -> None:
    """A turn without a model call, a digest or a span leaves no part."""
    manifest = TurnManifest()
    manifest.watch(usage(3, 30))
    assert manifest.finished(None) == {"parts": [], "runs": {}}
    manifest.digest = "d"
    assert manifest.finished(("trace", "span"))["parts"] == [
        {"trace_id": "trace", "span_id": "span", "digest": "d"}
    ]


def test_parts_are_added_up() -> None:
    """Usage of all parts together, and the digest of the newest that has one."""
    parts = [
        {"usage": {"requests": 1, "input_tokens": 5}, "digest": "old"},
        {"usage": {"requests": 2}, "digest": "new"},
        {},
    ]
    assert usage_of({"parts": parts}) == {"requests": 3, "input_tokens": 5}  # type: ignore[typeddict-item]
    assert digest_of({"parts": parts}) == "new"  # type: ignore[typeddict-item]
    assert (usage_of({"parts": [{}]}), digest_of({"parts": [{}]}), usage_of({})) == (None,) * 3


@pytest.mark.parametrize(
    ("kept", "ranges"),
    [
        ([], []),
        ([2, 3, 5, 8], [[2, 8]]),
        ([5, 8], [[5, 8]]),
        ([2, 3, 8], [[2, 3], [8, 8]]),
        ([2, 5], [[2, 2], [5, 5]]),
        ([3], [[3, 3]]),
    ],
)
def test_ranges_lack_no_turn_that_is_known(kept: list[int], ranges: list[list[int]]) -> None:
    """Numbers that the session has not are no gap."""
    known = [Turn(number, []) for number in (2, 3, 5, 8)]
    left = [turn for turn in known if turn.turn in kept]
    assert manifests._ranges(known, left) == ranges


@pytest.mark.parametrize(
    ("roles", "grows"), [("", False), ("ua", False), ("u", True), ("au", True)]
)
def test_a_turn_that_does_not_end_with_an_answer_may_grow(roles: str, grows: bool) -> None:
    """Its last item decides."""
    items = [{"role": "user" if role == "u" else "assistant"} for role in roles]
    assert manifests._may_grow(Turn(1, items)) is grows


def test_tokens_that_are_counted_later_were_none_before() -> None:
    """Reasoning is counted from the first model call that reasons; what stays is nothing spent."""
    manifest = TurnManifest()
    counted = usage(3, 30)
    manifest.watch(counted)
    details = OutputTokensDetails(reasoning_tokens=2)
    counted.add(Usage(requests=1, output_tokens=4, output_tokens_details=details))
    spent = manifest.spent()
    assert spent["reasoning_output_tokens"] == 2
    assert (spent["requests"], spent["input_tokens"], spent["output_tokens"]) == (1, 0, 4)
