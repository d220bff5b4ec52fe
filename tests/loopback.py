"""A model provider on 127.0.0.1 that speaks OpenAI Responses and Chat Completions.

It answers only from the messages of the request in hand, refuses a history that a provider
refuses, and keeps every request body for the test to read. ``What is the weather in Paris?``
makes it call the tool ``weather`` where the request offers one.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from session_middleware._demo_model import answer

_WEATHER = re.compile(r"weather in (\w+)", re.IGNORECASE)
_numbers = itertools.count(1)


class Refused(Exception):
    """The request's history is one that a provider answers with status 400."""


@dataclass
class Loopback:
    """A running server: where it is, and what it was sent."""

    base_url: str
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The request bodies sent to this path, in order."""
        return [body for called, body in self.requests if called == path]


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Run the provider on a free port for the length of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    state = Loopback(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()  # joins the threads of open requests
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One request: read, check, answer in JSON or in server-sent events."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """A test server is silent."""

    def do_POST(self) -> None:
        """Answer /v1/responses and /v1/chat/completions."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/v1")
        state: Loopback = self.server.state  # type: ignore[attr-defined]
        state.requests.append((path, body))
        # One connection per request, so that no idle one holds up the end of the server.
        self.close_connection = True
        try:
            if path == "/responses":
                response = _responses(body)
                events = _response_events(response)
            elif path == "/chat/completions":
                response = _chat(body)
                events = _chat_events(response)
            else:
                self._json(404, {"error": {"message": f"no such path: {path}"}})
                return
        except Refused as refusal:
            state.refused.append(str(refusal))
            self._json(400, {"error": {"message": str(refusal), "type": "invalid_request_error"}})
            return
        if body.get("stream"):
            self._events(events)
        else:
            self._json(200, response)

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _events(self, events: list[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(event.encode())
            self.wfile.flush()


# --- what a provider refuses ---------------------------------------------------------------


def _check_responses(items: list[dict[str, Any]]) -> None:
    open_calls: dict[str, None] = {}
    previous_reasoning = False
    for position, item in enumerate(items):
        kind = item.get("type", "message" if "role" in item else None)
        if kind is None:
            raise Refused(f"input[{position}] has neither a type nor a role.")
        if kind == "function_call":
            open_calls[item["call_id"]] = None
        elif kind == "function_call_output":
            if item["call_id"] not in open_calls:
                raise Refused(
                    f"No tool call found for function call output with call_id {item['call_id']}."
                )
            del open_calls[item["call_id"]]
        elif kind == "message" and item["role"] == "user" and previous_reasoning:
            raise Refused("A reasoning item was provided without its required following item.")
        previous_reasoning = kind == "reasoning"
    for call_id in open_calls:
        raise Refused(f"No tool output found for function call {call_id}.")


def _check_chat(messages: list[dict[str, Any]]) -> None:
    waiting: set[str] = set()
    for position, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise Refused(f"messages[{position}]: 'tool' must follow its 'tool_calls'.")
            waiting.discard(message["tool_call_id"])
            continue
        if waiting:
            raise Refused(f"messages[{position}]: 'tool_calls' without their tool messages.")
        waiting = {made["id"] for made in message.get("tool_calls") or ()}
    if waiting:
        raise Refused("The last 'tool_calls' have no tool messages.")


# --- what it answers -----------------------------------------------------------------------


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def _next_step(
    messages: list[tuple[str, str]], outputs_at_the_end: list[str], tools: list[str]
) -> tuple[str, str]:
    """("text", what to say) or ("call", the arguments for the weather tool)."""
    if outputs_at_the_end:
        return "text", f"The tool says: {', '.join(outputs_at_the_end)}"
    asked = _WEATHER.search(messages[-1][1])
    if asked and "weather" in tools:
        return "call", json.dumps({"city": asked[1]})
    return "text", answer(messages)


def _responses(body: dict[str, Any]) -> dict[str, Any]:
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    _check_responses(items)
    messages, outputs = [], []
    for item in items:
        if item.get("type", "message") == "message":
            messages.append((item["role"], _text(item["content"])))
            outputs = []
        elif item["type"] == "function_call_output":
            outputs.append(_text(item["output"]))
    tools = [tool.get("name", "") for tool in body.get("tools") or ()]
    kind, value = _next_step(messages, outputs, tools)
    number = next(_numbers)
    output = (
        {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": value, "annotations": []}],
        }
        if kind == "text"
        else {
            "id": f"fc_{number}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_{number}",
            "name": "weather",
            "arguments": value,
        }
    )
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": time.time(),
        "status": "completed",
        "model": body["model"],
        "output": [output],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": len(items),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(items) + 1,
        },
    }


def _response_events(response: dict[str, Any]) -> list[str]:
    (item,) = response["output"]
    where = {"output_index": 0, "item_id": item["id"]}
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    if item["type"] == "message":
        (part,) = item["content"]
        at = {**where, "content_index": 0}
        empty = {**part, "text": ""}
        added = {**item, "content": [], "status": "in_progress"}
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": added},
            {"type": "response.content_part.added", **at, "part": empty},
            *(
                {"type": "response.output_text.delta", **at, "delta": word, "logprobs": []}
                for word in re.findall(r"\S+\s*", part["text"])
            ),
            {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
            {"type": "response.content_part.done", **at, "part": part},
        ]
    else:
        added = {**item, "arguments": "", "status": "in_progress"}
        arguments = item["arguments"]
        done = {"type": "response.function_call_arguments.done", **where, "arguments": arguments}
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": added},
            {"type": "response.function_call_arguments.delta", **where, "delta": arguments},
            {**done, "name": item["name"]},
        ]
    events += [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    return [
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n"
        for number, event in enumerate(events)
    ]


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    _check_chat(body["messages"])
    messages, outputs = [], []
    for message in body["messages"]:
        if message["role"] == "tool":
            outputs.append(_text(message["content"]))
        elif not message.get("tool_calls"):
            messages.append((message["role"], _text(message["content"])))
            outputs = []
    tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
    kind, value = _next_step(messages, outputs, tools)
    number = next(_numbers)
    message: dict[str, Any] = {"role": "assistant", "content": value}
    if kind == "call":
        made = {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "weather", "arguments": value},
        }
        message = {"role": "assistant", "content": None, "tool_calls": [made]}
    return {
        "id": f"chatcmpl_{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "stop" if kind == "text" else "tool_calls",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(body["messages"]),
            "completion_tokens": 1,
            "total_tokens": len(body["messages"]) + 1,
        },
    }


def _chat_events(response: dict[str, Any]) -> list[str]:
    (choice,) = response["choices"]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if message.get("tool_calls"):
        deltas.append({"tool_calls": [{"index": 0, **message["tool_calls"][0]}]})
    else:
        deltas += [{"content": word} for word in re.findall(r"\S+\s*", message["content"])]
    whole = {key: response[key] for key in ("id", "created", "model")}
    head = {**whole, "object": "chat.completion.chunk"}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    chunks += [{**head, "choices": [last]}, {**head, "choices": [], "usage": response["usage"]}]
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
