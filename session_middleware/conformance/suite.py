"""The whole suite as one class; its tests are in a module for each operation."""

from __future__ import annotations

from session_middleware.conformance.acquire import AcquireTests
from session_middleware.conformance.cancellation import CancellationTests
from session_middleware.conformance.copies import CopyTests
from session_middleware.conformance.edges import EdgeTests
from session_middleware.conformance.end import EndTests
from session_middleware.conformance.failures import FailureTests
from session_middleware.conformance.fencing import FencingTests
from session_middleware.conformance.histories import HistoryTests
from session_middleware.conformance.inside import InsideTests
from session_middleware.conformance.journal import JournalTests
from session_middleware.conformance.keys import KeyTests
from session_middleware.conformance.listing import ListingTests
from session_middleware.conformance.load import LoadTests
from session_middleware.conformance.outside import OutsideTests
from session_middleware.conformance.park import ParkTests
from session_middleware.conformance.peers import PeerTests
from session_middleware.conformance.pending import PendingTests
from session_middleware.conformance.processes import ProcessTests
from session_middleware.conformance.raw import RawTests
from session_middleware.conformance.refusals import RefusalTests
from session_middleware.conformance.removal import RemovalTests
from session_middleware.conformance.retry import RetryTests
from session_middleware.conformance.tickets import TicketTests
from session_middleware.conformance.visible import VisibleTests
from session_middleware.conformance.write_turn import WriteTurnTests


class MemoryConformance(
    HistoryTests,
    RefusalTests,
    AcquireTests,
    LoadTests,
    WriteTurnTests,
    EdgeTests,
    EndTests,
    RetryTests,
    KeyTests,
    JournalTests,
    ParkTests,
    FencingTests,
    TicketTests,
    OutsideTests,
    InsideTests,
    VisibleTests,
    PeerTests,
    RawTests,
    CancellationTests,
    FailureTests,
    ProcessTests,
    ListingTests,
    PendingTests,
    RemovalTests,
    CopyTests,
):
    """Every test of every operation; those that a memory cannot serve are skipped.

    Override ``make_memory``, and as many of the other hooks as the storage can serve: see
    ``session_middleware.conformance.cases.Hooks``.
    """
