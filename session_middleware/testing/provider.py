"""A model provider on 127.0.0.1 that speaks OpenAI Responses and Chat Completions.

It answers from the messages of the request in hand alone, or as the test told it to, refuses a
history that a provider refuses, and keeps every request body for the test to read.
``What is the weather in Paris?`` makes it call the tool ``weather`` where the request offers one.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeAlias

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel
from agents.models.interface import Model
from agents.testing import ModelStep
from openai import AsyncOpenAI

from session_middleware.testing import wire
from session_middleware.testing.refusals import Refused, check_chat, check_responses
from session_middleware.testing.replies import answer

__all__ = ["Provider", "local_provider"]

_WEATHER = re.compile(r"weather in (\w+)", re.IGNORECASE)
_AND = re.compile(r"and (?:in )?([A-Z]\w+)")

Api: TypeAlias = Literal["responses", "chat"]

_PATIENCE = 60.0  # seconds; by itself the client gives up connecting after 5


@dataclass
class Provider:
    """A provider that runs: where it is, what it was sent, and what it says next.

    Attributes:
        base_url: what an OpenAI client takes as ``base_url``.
        requests: the (path, body) of each request, in order.
        refused: why histories were answered with status 400, in order.
    """

    base_url: str
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _script: deque[ModelStep | int] = field(default_factory=deque, repr=False)

    def script(self, *steps: ModelStep | int) -> None:
        """Say what comes next, one step a request; afterwards it answers from its input again.

        Args:
            steps: ``assistant``, ``call`` or ``calls`` of this package, or an HTTP status such
                as 503, which the client gets as an error.

        Raises:
            TypeError: a step is of another kind. None of the steps was taken.
        """
        for step in steps:
            if not isinstance(step, int) and not (isinstance(step, ModelStep) and step.output):
                raise TypeError(
                    "a step of a provider must be assistant(...), call(...), calls(...) or an "
                    f"HTTP status, got {type(step).__name__}"
                )
        self._script.extend(steps)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The request bodies sent to "/responses" or "/chat/completions", in order."""
        return [body for called, body in self.requests if called == path]

    def client(self) -> AsyncOpenAI:
        """The real OpenAI client for this provider: no retries, and a minute's patience."""
        return AsyncOpenAI(
            base_url=self.base_url, api_key="local", max_retries=0, timeout=_PATIENCE
        )

    def model(self, api: Api = "responses") -> Model:
        """A model of the SDK's that talks to this provider with the real OpenAI client.

        Args:
            api: the Responses API or the Chat Completions API.
        """
        if api == "chat":
            return OpenAIChatCompletionsModel("local", self.client())
        return OpenAIResponsesModel("local", self.client())

    def agent(
        self, api: Api = "responses", *, name: str = "Assistant", **agent_options: Any
    ) -> Agent[Any]:
        """An agent whose model is ``model(api)``, with further options such as ``tools=``."""
        return Agent(name=name, model=self.model(api), **agent_options)


@contextmanager
def local_provider() -> Iterator[Provider]:
    """Run a provider on a free port of this machine for the length of the block.

    Example:
        with local_provider() as provider:
            agent = provider.agent()
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    provider = Provider(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.provider = provider  # type: ignore[attr-defined]  # read by the handler
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()  # joins the threads of open requests
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One request: read, check, answer in JSON or in server-sent events."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """A test server is silent."""

    def do_POST(self) -> None:
        """Answer /v1/responses and /v1/chat/completions."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/v1")
        provider: Provider = self.server.provider  # type: ignore[attr-defined]
        provider.requests.append((path, body))
        # One connection per request, so that no idle one holds up the end of the server.
        self.close_connection = True
        if path not in _APIS:
            self._error(404, f"no such path: {path}")
            return
        try:
            answered, events = _APIS[path](body, provider._script)
        except Refused as refusal:
            provider.refused.append(str(refusal))
            self._error(400, str(refusal))
        except _Failed as failed:
            self._error(failed.status, "the test asked for this failure")
        else:
            if body.get("stream"):
                self._events(events)
            else:
                self._json(200, answered)

    def _error(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def handle(self) -> None:
        """Serve one connection; a client that leaves before its end, as clients do, is no error."""
        with suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        """Send the rest, unless nobody reads it."""
        with suppress(ConnectionError):
            super().finish()

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


# --- what it says --------------------------------------------------------------------------

_Script = deque[ModelStep | int]
_Answer = tuple[dict[str, Any], list[str]]


class _Failed(Exception):
    """The script asks for an answer with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _output(
    script: _Script, messages: list[tuple[str, str]], outputs: list[str], tools: list[str]
) -> list[wire.Item]:
    """The items of the next answer: the script's, else what follows from the request.

    Args:
        messages: (role, text) of each message of the request.
        outputs: the texts of the tool outputs behind the last message.
        tools: the names of the tools that the request offers.
    """
    if script:
        step = script.popleft()
        if isinstance(step, int):
            raise _Failed(step)
        return [item.model_dump(mode="json", exclude_none=True) for item in step.output]
    if outputs:
        return [wire.message(f"The tool says: {', '.join(outputs)}")]
    asked = _WEATHER.search(messages[-1][1])
    if not asked or "weather" not in tools:
        return [wire.message(answer(messages))]
    cities = [asked[1], *_AND.findall(messages[-1][1])]
    made = [wire.function_call("weather", json.dumps({"city": city})) for city in cities]
    # A model that thinks before it calls a tool several times at once.
    return made if len(made) == 1 else [wire.reasoning(), *made]


def _responses(body: dict[str, Any], script: _Script) -> _Answer:
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    check_responses(items)
    messages, outputs = list[tuple[str, str]](), list[str]()
    for item in items:
        if item.get("type", "message") == "message":
            messages.append((item["role"], wire.text_of(item["content"])))
            outputs = []
        elif item["type"] == "function_call_output":
            outputs.append(wire.text_of(item["output"]))
    tools = [tool.get("name", "") for tool in body.get("tools") or ()]
    answered = wire.response(body, items, _output(script, messages, outputs, tools))
    return answered, wire.response_events(answered)


def _chat(body: dict[str, Any], script: _Script) -> _Answer:
    check_chat(body["messages"])
    messages, outputs = list[tuple[str, str]](), list[str]()
    for message in body["messages"]:
        if message["role"] == "tool":
            outputs.append(wire.text_of(message["content"]))
        elif not message.get("tool_calls"):
            messages.append((message["role"], wire.text_of(message["content"])))
            outputs = []
    tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
    answered = wire.completion(body, _output(script, messages, outputs, tools))
    return answered, wire.completion_events(answered)


_APIS = {"/responses": _responses, "/chat/completions": _chat}
