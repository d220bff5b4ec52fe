"""A card that is charged once, although its worker is killed right after the charge.

    pip install session-middleware
    python payments.py

A payment server on this machine ignores a charge whose idempotency key it has seen. The first
worker is killed after the charge and before it could say so; the request is delivered again to a
second worker, whose model repeats the charge that it is told is unknown. No key of a provider is
needed: the model answers from its input alone.
"""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tool_context import ToolContext

from session_middleware import (
    SQLiteSessionMemory,
    TurnInProgress,
    current_tool_call,
    with_session_memory,
)

set_tracing_disabled(True)
charges: dict[str, int] = {}


class Payments(BaseHTTPRequestHandler):
    """Charges once for each idempotency key."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        charges.setdefault(body["key"], body["cents"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


def work(url: str, file: str, dies: bool) -> None:
    """A worker that serves the request once."""

    @function_tool
    def charge(ctx: ToolContext, cents: int) -> str:
        call = current_tool_call(ctx)
        assert call is not None
        body = json.dumps({"key": call.key, "cents": cents}).encode()
        urllib.request.urlopen(urllib.request.Request(url, body))
        print(f"  attempt {call.attempt}: charge sent with key {call.key[:8]}...")
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return "charged"

    again = [[function_call("charge", {"cents": 500}, call_id="call_2")]]
    first = [[function_call("charge", {"cents": 500}, call_id="call_1")]]
    done = [[assistant_message("Your card was charged once.")]]
    model = ScriptedModel((first if dies else again) + done)
    agent = Agent(name="Cashier", model=model, tools=[charge])
    serve = with_session_memory(Runner.run, memory=SQLiteSessionMemory(file, lease=1))

    async def served() -> str:
        while True:
            try:
                request = {"session_id": "order-1", "idempotency_key": "order-1"}
                return (await serve(agent, "Charge 5 dollars", **request)).final_output
            except TurnInProgress as busy:  # until the lease of the dead worker is over
                await asyncio.sleep(busy.retry_after or 1)

    print("  " + asyncio.run(served()))


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Payments)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for name, dies in (("first", True), ("second", False)):
            print(f"the {name} worker")
            worker = spawn.Process(target=work, args=(url, f"{folder}/orders.db", dies))
            worker.start()
            worker.join()
    print(f"charges on the card: {list(charges.values())}")
    sys.exit(list(charges.values()) != [500])


if __name__ == "__main__":
    main()
