"""The tool calls of one run: heard of by hooks, kept in the turn's journal and in the memory.

A call is in the journal before its tool begins, or the tool does not begin. What is done about the
calls of an earlier attempt is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from session_middleware import _current
from session_middleware._sdk import tools
from session_middleware.errors import MemoryUnavailable, SessionMemoryError
from session_middleware.stores.items import encode_items
from session_middleware.stores.protocol import JOURNAL
from session_middleware.stores.records import Item, JournalEntry

if TYPE_CHECKING:
    from session_middleware._turns.turn import ActiveTurn


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The call that a tool is being run for.

    Attributes:
        key: the same for the same effect, however often the request is made again; 32 hexadecimal
            digits. Hand it to a payment provider as its idempotency key.
        fence: a number that grows with every turn that holds a session of the memory. Storage of
            your own can refuse a writer whose fence is smaller than the one it has seen.
        attempt: 1, and one more each time a call is made under the same key.
    """

    key: str
    fence: int
    attempt: int


class RunCalls:
    """The calls of one run.

    Args:
        readable: what is stored of the run may be read; otherwise no text of it is kept either.

    Attributes:
        failure: why a call could not be kept. The SDK hides it in an error of its own where it
            was about to run an approved tool.
    """

    def __init__(self, turn: ActiveTurn, *, readable: bool = True) -> None:
        self.turn = turn
        self._readable = readable
        self._handed_over: list[JournalEntry] = []
        self.run: int | None = None
        self.failure: SessionMemoryError | None = None

    @property
    def _is_kept(self) -> bool:
        """Whether the turn may be made again in another process, so that the memory must know."""
        turn = self.turn
        may_repeat = turn.idempotency_key is not None or turn.resumed
        return may_repeat and JOURNAL in turn.options.capabilities

    async def responded(self, agent: Any, response: Any) -> None:
        """The model has answered; its calls are kept before any tool begins.

        Raises:
            MemoryUnavailable, TurnLost: they could not be kept, so no tool may begin.
        """
        if self.run is None or not tools.has_local_calls(response):
            return
        items = tools.response_items(response)
        handoffs = tools.handoff_names(agent)
        calls = [tools.local_call(item, handoffs) for item in items]
        if any(calls):
            texts = [self._text(item) for item in items]
            new = self.turn.session.journal.respond(self.run, calls, texts)
            await self._begin(new)

    async def began(self, context: Any) -> None:
        """A tool is about to begin; a call that waited for approval is kept now."""
        call = tools.call_of(context)
        if call is not None and self.run is not None:
            item = tools.call_item(context)
            text = None if item is None else self._text(item)
            new = self.turn.session.journal.start(self.run, call, text)
            await self._begin([] if new is None else [new])

    async def begin_outer(self, items: Sequence[Item]) -> None:
        """The calls of agents used as tools, whose own calls waited for approval, go on."""
        for item in items:
            call = tools.local_call(item)
            if call is not None and self.run is not None:
                new = self.turn.session.journal.start(self.run, call, self._text(item))
                await self._begin([] if new is None else [new])

    async def ended(self, context: Any, result: Any) -> None:
        """A tool has returned. An output that cannot be kept leaves its call unknown."""
        call = tools.call_of(context)
        if call is None or self.run is None:
            return
        item = tools.output_item(context, result)
        text = None if item is None else self._text(item)
        entry = self.turn.session.journal.end(self.run, call.call_id, text)
        try:
            await self._keep([] if entry is None else [entry], durable=False)
        except SessionMemoryError as error:  # the run hears of it when it hands over the output
            self.turn.telemetry.event("save_failed", error_type=type(error).__name__)

    def handed_over(self, items: Sequence[Item]) -> None:
        """These items are stored, and take the place of their entries."""
        if self.run is not None:
            self._handed_over += self.turn.session.journal.handed_over(self.run, items)

    def stop(self, error: BaseException | None) -> None:
        """The run is over."""
        if error is not None and self.run is not None:
            self.turn.session.journal.stop(self.run, raised=isinstance(error, Exception))

    async def _begin(self, entries: Sequence[JournalEntry]) -> None:
        """Keep the calls whose tools are about to begin."""
        try:
            await self._keep(entries, durable=True)
        except SessionMemoryError as error:
            self.turn.session.journal.withdraw(entries)
            self.failure = error
            raise

    async def _keep(self, entries: Sequence[JournalEntry], *, durable: bool) -> None:
        held = self.turn.session
        if not entries or not self._is_kept:
            return
        if held.lease is None or held.forgotten:
            raise held.unavailable or MemoryUnavailable(
                "the memory could not be reached, so no tool may begin for this idempotency key"
            )
        held.expiry.raise_if_expired("no tool was begun")
        done, self._handed_over = self._handed_over, []
        with held.telemetry.operation("upsert_memory") as operation:
            operation.count = len(entries)
            await held.store.journal(held.lease, [*done, *entries], durable=durable)

    def _text(self, item: Item) -> str | None:
        """The item as it may be stored; None where it must not be."""
        if not self._readable:
            return None
        redact = self.turn.options.redact
        kept = item if redact is None else redact(item)
        return None if kept is None else encode_items([kept])[0]


def calls_here() -> RunCalls | None:
    """The calls of the run in force here; None inside an agent that is used as a tool."""
    scope = _current.current_scope()
    if scope is None or scope.outer is not None:
        return None
    return getattr(scope.run, "calls", None)


def current_tool_call(context: Any) -> ToolCall | None:
    """Return the call that a tool is being run for, or None outside a run in a session.

    Args:
        context: the ToolContext that the SDK hands a tool as its first parameter.

    >>> from agents import function_tool
    >>> from agents.tool_context import ToolContext
    >>> @function_tool
    ... async def charge(ctx: ToolContext, cents: int) -> str:
    ...     call = current_tool_call(ctx)
    ...     return f"charged under {call.key if call else 'no key'}"
    """
    call = tools.call_of(context)
    scope = _current.current_scope()
    calls = None if scope is None else getattr(scope.run, "calls", None)
    if call is None or scope is None or not isinstance(calls, RunCalls):
        return None
    turn = calls.turn
    lease = turn.lease
    if lease is None:
        return None
    if isinstance(scope.outer, ToolCall):
        key = turn.session.journal.inner(scope.outer.key, call)
        return ToolCall(key, lease.fence, scope.outer.attempt)
    record = turn.session.journal.find(call.call_id)
    return None if record is None else ToolCall(record.key, lease.fence, record.attempt)
