"""What the contenders are given: an agent whose model costs nothing, and items like real ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, ModelResponse
from agents.models.interface import Model
from agents.testing import assistant_message
from agents.usage import Usage

QUESTION = "What is the weather in town 7?"

_numbers = itertools.count(1)


class NullModel(Model):
    """Answers "ok" at once, or after some seconds, with an id of its own as providers give one."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        message = assistant_message("ok", item_id=f"msg_{next(_numbers)}")
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise NotImplementedError("nothing is streamed here")


def null_agent(seconds: float = 0.0) -> Agent[Any]:
    return Agent(name="Assistant", model=NullModel(seconds))


def one_turn(number: int) -> list[dict[str, Any]]:
    """The four items of a turn in which a tool was called, about 600 bytes."""
    call_id = f"call_{number:024}"
    return [
        {"role": "user", "content": f"What is the weather in town {number}, and will it hold?"},
        {
            "type": "function_call",
            "id": f"fc_{number:024}",
            "call_id": call_id,
            "name": "get_weather",
            "arguments": f'{{"town": "{number}", "days": 3}}',
            "status": "completed",
        },
        {"type": "function_call_output", "call_id": call_id, "output": "Sunny, 21 °C. " * 4},
        {
            "type": "message",
            "id": f"msg_{number:024}",
            "role": "assistant",
            "status": "completed",
            "content": [
                {
                    "type": "output_text",
                    "text": "It is sunny, and it will hold for three days. " * 2,
                    "annotations": [],
                    "logprobs": [],
                }
            ],
        },
    ]


def history(items: int) -> list[dict[str, Any]]:
    """So many items, in whole turns."""
    return [item for number in range(items // 4) for item in one_turn(number)]
