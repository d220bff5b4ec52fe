"""Whatever happened in a conversation before, no provider refuses its history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from session_middleware.testing.provider import Provider
from tests.support.conversation_steps import STEPS, tell_stories

FEW, MANY = 4, 250
"""Conversations for each of the two APIs."""

both_apis = pytest.mark.parametrize("api", ["responses", "chat"])


@both_apis
async def test_conversations_at_random(provider: Provider, api: Any, tmp_path: Path) -> None:
    """A few conversations with every kind of step, always the same ones."""
    taken = await tell_stories(provider, api, range(FEW), tmp_path)
    assert taken.keys() == {step.__name__ for step in STEPS}
    assert provider.refused == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@both_apis
async def test_five_hundred_conversations(provider: Provider, api: Any, tmp_path: Path) -> None:
    """The same, 250 in either of the APIs."""
    taken = await tell_stories(provider, api, range(1000, 1000 + MANY), tmp_path)
    assert provider.refused == []
    print(f"\n{api}: {MANY} conversations, {len(provider.requests)} requests, {dict(taken)}")
