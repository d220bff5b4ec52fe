"""The session that a turn holds, as its runs read and write it.

Everything that is loaded and stored on behalf of a run goes through here, is reported, and is
refused once the turn's time is over. Who holds the session, and for how long, is the turn's
business.
"""

from __future__ import annotations

from session_middleware._turns.expiry import Expiry
from session_middleware._turns.journal import Journal
from session_middleware._turns.load import HistoryLoader
from session_middleware._turns.manifest import TurnManifest
from session_middleware._turns.repeated import repeated
from session_middleware._turns.runs import LeftRun, RunTracker
from session_middleware._turns.write_buffer import WriteBuffer
from session_middleware.errors import MemoryUnavailable
from session_middleware.options import Options
from session_middleware.stores.items import encode_items
from session_middleware.stores.protocol import END_RUN, WRITE_TURN, TurnStore
from session_middleware.stores.records import Item, Lease, RunItems, TurnEnd
from session_middleware.telemetry import TurnTelemetry


class HeldSession:
    """The session of one turn.

    Args:
        expiry: the turn's time limit.

    Attributes:
        lease: the right to write, once the session was acquired.
        waited: seconds until it was.
        forgotten: the memory failed, and the turn goes on without it.
        unavailable: how it failed.
    """

    def __init__(
        self, session_id: str, options: Options, telemetry: TurnTelemetry, expiry: Expiry
    ) -> None:
        self.session_id = session_id
        self.options = options
        self.store: TurnStore = options.turns
        self.telemetry = telemetry
        self.expiry = expiry
        self.tracker = RunTracker()
        self.buffer = WriteBuffer()
        self.manifest = TurnManifest()
        self.journal = Journal()
        self.loader = HistoryLoader(
            self.store, session_id, options.window, telemetry, self.manifest
        )
        self.lease: Lease | None = None
        self.waited: float | None = None
        self.forgotten = False
        self.unavailable: Exception | None = None

    def report_trace(self, trace: tuple[str, str | None] | None) -> None:
        """A run belongs to that SDK trace (its id and group id)."""
        if trace is not None and self.tracker.in_trace(trace[0]):
            self.telemetry.sdk_trace(*trace)

    # --- load ------------------------------------------------------------------------------

    async def load(self, run: int, limit: int | None, *, own_last: bool = False) -> list[Item]:
        """The history as the model of that run gets it.

        Args:
            own_last: leave later turns out, so that the history ends with this one.
        """
        if self.buffer:
            await self.flush()
        hidden = self.tracker.running(besides=run)
        if hidden:
            self.loader.forget_prefetched()
        if self.buffer.early(run) is not None:
            hidden.add(run)  # the SDK adds its input to the history itself
        lease = self.lease
        hide = (lease.turn, hidden) if lease is not None and hidden else None
        last = lease.turn if own_last and lease is not None else None
        return await self.loader.load(run, limit, hide, last)

    async def load_own(self, limit: int | None) -> list[Item]:
        """The newest items of this turn itself, raw: what a resumed run compares."""
        await self.flush()
        lease = self.lease
        if lease is None:
            return []
        with self.telemetry.operation("search_memory") as operation:
            items = await self.store.load_items(self.session_id, turn=lease.turn, limit=limit)
            operation.count = len(items)
        return items

    async def repeated(self, given: list[Item]) -> int:
        """How many items at the beginning of a run's input are the session's own history."""
        await self.flush()
        newest = await self.store.load_items(self.session_id, limit=len(given))
        count = repeated(given, newest, self.options.redact)
        if count:
            self.telemetry.event_once("history_repeated", items=count)
        return count

    # --- store -----------------------------------------------------------------------------

    async def append(
        self,
        run: int,
        position: int,
        items: list[Item],
        input_digest: str,
        *,
        last: bool = False,
        instead: bool = False,
    ) -> None:
        """Store items of a run.

        Args:
            last: the run's model says nothing after them. As nothing follows but the end of the
                turn, they may be deferred to it, and stored in the same transaction.
            instead: they replace the input that was stored early.

        Raises:
            InvalidItem: one of them cannot be stored; none of them is.
            TurnLost: the session is no longer this turn's; nothing was written.
        """
        lease = self.lease
        if lease is None:
            return
        self.expiry.raise_if_expired("nothing was written")
        if (last or instead) and WRITE_TURN in self.options.capabilities:
            texts = encode_items(items)
            if instead:
                self.buffer.replace_early()
            self.buffer.defer(RunItems(run, position, texts, input_digest, instead))
            if instead:
                await self.flush()
            return
        await self.flush()
        with self.telemetry.operation("create_memory") as operation:
            operation.count = len(items)
            await self.store.append_items(lease, run, position, items, input_digest=input_digest)
        self._stored(run, len(items))

    def hand_over_early(self, early: RunItems) -> None:
        """The SDK has handed over the input as it was stored early.

        Raises:
            TurnLost: the turn's time is over.
        """
        self.expiry.raise_if_expired("nothing was written")
        self._stored(early.run, len(early.texts))
        self.buffer.hand_over()

    async def settle(self) -> None:
        """Let the session be as if the SDK had stored all it handed over so far, and no more.

        For the memory's own methods, where they look into the session or change it in the turn.
        """
        self.buffer.withdraw()
        await self.flush()

    async def flush(self) -> None:
        """Store deferred items, because something follows that comes after them.

        Items that the memory could not store stay deferred, as their run did not hear of it.
        """
        self.loader.forget_prefetched()
        try:
            await self.buffer.flush(self.write)
        except MemoryUnavailable as error:
            if not self.forgets("save_failed", error):
                raise

    async def write(self, items: list[RunItems], end: TurnEnd | None = None) -> None:
        """Store items, and the turn's end if it is given, in one transaction."""
        items = self.storable(items)
        if self.lease is None or not (items or end):
            return
        count = sum(len(new.texts) for new in items)
        name = "end_turn" if end is not None else "create_memory" if count else "delete_memory"
        with self.telemetry.operation(name) as operation:
            operation.count = count
            await self.store.write_turn(self.lease, items, end)
        for new in items:
            if new.texts:
                self._stored(new.run, len(new.texts))

    async def end(self, record: TurnEnd) -> None:
        """Write the turn's end and let the session go."""
        if self.lease is not None:
            with self.telemetry.operation("delete_memory" if record.discard else "end_turn"):
                await self.store.end_turn(self.lease, record)

    def storable(self, items: list[RunItems]) -> list[RunItems]:
        """Those of the items that may be stored: none but withdrawals without memory."""
        return [new for new in items if new.withdraws] if self.forgotten else items

    def _stored(self, run: int, items: int) -> None:
        self.buffer.unflushed = False
        self.tracker.stored += items
        self.telemetry.event("items_saved", count=items, run=run)

    async def adopt(self, left: LeftRun, run: int) -> int:
        """Let a run go on from what an earlier one left; returns how many items it starts with."""
        await self.flush()
        lease = self.lease
        if lease is None:
            return 0
        with self.telemetry.operation("update_memory"):
            kept = await self.store.retry_run(lease, left.run, run)
        self.tracker.replace(left.run)
        return kept

    async def end_run(self, run: int | None) -> None:
        """Tell a memory that makes runs wait for each other that this one stores no more."""
        if run is not None and self.lease is not None and END_RUN in self.options.capabilities:
            await self.store.end_run(self.lease, run)

    def forgets(self, event: str, error: MemoryUnavailable) -> bool:
        """Whether the turn goes on without memory from here on; reported either way."""
        self.report(event, error)
        if self.options.on_unavailable != "forget":
            return False
        self.forgotten = True
        return True

    def report(self, event: str, error: Exception) -> None:
        """Log that the memory failed, once for each error."""
        if error is not self.unavailable:
            self.unavailable = error
            self.telemetry.event(event, error_type=type(error.__cause__ or error).__name__)
