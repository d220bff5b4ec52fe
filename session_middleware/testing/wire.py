"""How a provider writes its answers: JSON and server-sent events, in both APIs.

Pure functions from a request's body and the items of an answer to what goes over the wire.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Sequence
from typing import Any

Item = dict[str, Any]

_numbers = itertools.count(1)


def message(text: str) -> Item:
    """A message of the assistant, as an item of an answer."""
    return {
        "id": f"msg_{next(_numbers)}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def function_call(name: str, arguments: str) -> Item:
    """A call of a tool, as an item of an answer."""
    number = next(_numbers)
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{number}",
        "name": name,
        "arguments": arguments,
    }


def reasoning() -> Item:
    """A reasoning item without words, as an item of an answer."""
    return {"id": f"rs_{next(_numbers)}", "type": "reasoning", "summary": []}


def text_of(content: Any) -> str:
    """The text of a message's content or of an output, in either API."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


# --- Responses -----------------------------------------------------------------------------


def response(body: dict[str, Any], given: Sequence[Any], output: list[Item]) -> dict[str, Any]:
    """The answer to a request to the Responses API, whose input has the items ``given``."""
    return {
        "id": f"resp_{next(_numbers)}",
        "object": "response",
        "created_at": time.time(),
        "status": "completed",
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": len(given),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(given) + 1,
        },
    }


def response_events(answer: dict[str, Any]) -> list[str]:
    """The same answer as a stream of events."""
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    events: list[Item] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(answer["output"]):
        events += _item_events(index, item)
    events.append({"type": "response.completed", "response": answer})
    return [
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n"
        for number, event in enumerate(events)
    ]


def _item_events(index: int, item: Item) -> list[Item]:
    where = {"output_index": index, "item_id": item["id"]}
    added, between = item, list[Item]()
    if item["type"] == "message":
        (part,) = item["content"]
        at = {**where, "content_index": 0}
        added = {**item, "content": [], "status": "in_progress"}
        between = [
            {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
            *(
                {"type": "response.output_text.delta", **at, "delta": word, "logprobs": []}
                for word in _words(part["text"])
            ),
            {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
            {"type": "response.content_part.done", **at, "part": part},
        ]
    elif item["type"] == "function_call":
        added = {**item, "arguments": "", "status": "in_progress"}
        arguments = item["arguments"]
        done = {"type": "response.function_call_arguments.done", **where, "arguments": arguments}
        between = [
            {"type": "response.function_call_arguments.delta", **where, "delta": arguments},
            {**done, "name": item["name"]},
        ]
    return [
        {"type": "response.output_item.added", "output_index": index, "item": added},
        *between,
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ]


# --- Chat Completions ----------------------------------------------------------------------


def completion(body: dict[str, Any], output: list[Item]) -> dict[str, Any]:
    """The answer to a request to the Chat Completions API; reasoning items are left out."""
    said: dict[str, Any] = {"role": "assistant", "content": None}
    made = []
    for item in output:
        if item["type"] == "message":
            said["content"] = (said["content"] or "") + text_of(item["content"])
        elif item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            made.append({"id": item["call_id"], "type": "function", "function": function})
    if made:
        said["tool_calls"] = made
    choice = {
        "index": 0,
        "message": said,
        "finish_reason": "tool_calls" if made else "stop",
        "logprobs": None,
    }
    given = len(body["messages"])
    return {
        "id": f"chatcmpl_{next(_numbers)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": given, "completion_tokens": 1, "total_tokens": given + 1},
    }


def completion_events(answer: dict[str, Any]) -> list[str]:
    """The same answer as a stream of events."""
    (choice,) = answer["choices"]
    said = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in _words(said["content"] or "")]
    for index, made in enumerate(said.get("tool_calls") or ()):
        deltas.append({"tool_calls": [{"index": index, **made}]})
    whole = {key: answer[key] for key in ("id", "created", "model")}
    head = {**whole, "object": "chat.completion.chunk"}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    chunks += [{**head, "choices": [last]}, {**head, "choices": [], "usage": answer["usage"]}]
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
