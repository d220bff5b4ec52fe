"""The records that a memory, the core and the user hand each other: leases, turns and their ends.

Data only. What a store does with them is in ``stores.protocol``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, TypedDict

from session_middleware.history import LastItems, LastTurns, Turn

Item: TypeAlias = dict[str, Any]
"""One Responses input item: a JSON object, exactly as the SDK hands it over."""

Items: TypeAlias = list[Any]
"""Items at the surface: plain dicts, or what the SDK calls TResponseInputItem; both type-check."""

TurnState: TypeAlias = Literal[
    "running", "completed", "failed", "cancelled", "awaiting_approval", "abandoned", "replaced"
]
RunState: TypeAlias = Literal[
    "running", "completed", "failed", "cancelled", "awaiting_approval", "replaced"
]


CallState: TypeAlias = Literal["begun", "done", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call of the model for which a tool was run.

    Attributes:
        call_id: the provider's name for the call.
        name: the tool's name.
        key: the same for the same effect, however often the turn is made again.
        state: begun, done (the tool returned), failed (the tool or its run raised) or unknown
            (the tool began, and nobody saw its end).
        started_at, ended_at: UTC, to the microsecond.
        attempt: 1, and one more each time a call is made under the same key.
    """

    call_id: str
    name: str
    key: str
    state: CallState
    started_at: datetime
    ended_at: datetime | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call that waits for a person's approval.

    Attributes:
        id: the provider's name for the call.
        name: the tool's name.
        arguments: as the model wrote them, mostly JSON.
        approved: the decision that ``decide`` noted; None: none yet.
        message: what the model is told where the call was rejected.
    """

    id: str
    name: str
    arguments: str = field(default="", repr=False)
    approved: bool | None = None
    message: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class KeptState:
    """What is stored of a run that is parked.

    Attributes:
        identity: the name under which it is parked.
        calls: the calls that wait.
        text: the state as the SDK's JSON; None where it is not to be kept.
    """

    identity: str
    calls: tuple[PendingCall, ...] = ()
    text: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One item of a model's response whose tools are at work.

    Attributes:
        run: the run of the turn.
        place: its place in the run's journal, from 0; with the run it names the entry.
        call: the call, where the item is one; None for what stands beside calls.
        item: the item as JSON; None once the SDK has handed it over to be stored.
        output: the tool's output item as JSON, once the tool ended; None as above.
    """

    run: int
    place: int
    call: CallRecord | None = None
    item: str | None = field(default=None, repr=False)
    output: str | None = field(default=None, repr=False)


class ManifestPart(TypedDict, total=False):
    """What is known of a turn from its beginning, or from a resume, until it was parked or ended.

    Attributes:
        trace_id, span_id: of its root span (hex), where the trace is sampled.
        digest: ``history.size_and_digest`` of the history that was loaded last in it.
        usage: tokens and requests that it spent.
    """

    trace_id: str
    span_id: str
    digest: str
    usage: dict[str, int]


class ManifestRun(TypedDict, total=False):
    """Which history one run was given; a run that resumed another loads none.

    Attributes:
        turns: the turns that its window left, as ranges [first, last] of numbers that lack none
            with items; those of the turn itself are of runs that had ended.
        items: how many items that were, after repair.
        growing: of those turns that had not ended with their model's words, the number of items
            that they had then; a turn that is resumed gets more.
        hidden: the runs of the turn itself that were running, and so were left out.
        repairs: how many faults of each kind were mended when they were loaded; corrupt_entry:
            items that could not be read, and were left out.
        calls: for each model call of the run, in order, how many items it was given before the
            repair that precedes the call: those of the history, then those of the run so far.
    """

    turns: list[list[int]]
    items: int
    growing: dict[str, int]
    hidden: list[int]
    repairs: dict[str, int]
    calls: list[int]


class Manifest(TypedDict, total=False):
    """How to find again what the models of a turn were given: no word of it, only places.

    Attributes:
        parts: oldest first; more than one where the turn was parked and resumed.
        runs: by the number of the run, as text.
    """

    parts: list[ManifestPart]
    runs: dict[str, ManifestRun]


BEGINNING = datetime.fromtimestamp(0, UTC)
"""What is told for a date of a session that nobody can read."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """What a memory remembers of one turn.

    Attributes:
        turn: its number in the session, from 1, in the order in which turns began.
        state: running, completed, failed, cancelled, awaiting_approval, abandoned (its lease was
            taken over) or replaced (retried by a later turn that took over what it had stored).
        started_at, ended_at: UTC, to the microsecond.
        agent: the name of the agent that spoke last.
        error_type: the class name of what ended it, where it failed; of a turn that completed,
            of what kept its items from being stored, where that was to be forgotten.
        item_count: items stored under this turn.
        runs: Runner runs made in it, and writes of its own through the memory's methods.
        usage: tokens and requests, as far as the SDK reported them.
        output_text: the final output as text, where the turn completed.
        otel_trace_id: the OpenTelemetry trace of the turn, or of its newest part where it was
            parked and resumed; None where the trace is not sampled.
        history_digest: of the history that the model was given last, where a trace recorded it.
        manifest: which history each model call was given, and each trace: see ``Manifest``.
        waited: seconds until the turn had its session; None where the memory does not know.
        calls: the calls of the model for which tools were run, in order.
        items: the turn's items, in order.
    """

    session_id: str
    turn: int
    state: TurnState
    started_at: datetime
    ended_at: datetime | None = None
    agent: str | None = None
    error_type: str | None = None
    item_count: int = 0
    runs: int = 0
    idempotency_key: str | None = None
    sdk_trace_ids: tuple[str, ...] = ()
    otel_trace_id: str | None = None
    usage: dict[str, int] | None = None
    output_text: str | None = field(default=None, repr=False)
    history_digest: str | None = None

    manifest: Manifest | None = None
    waited: float | None = None
    calls: tuple[CallRecord, ...] = ()
    items: list[Item] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it: moments as ISO 8601 texts, its items and calls included."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        told["calls"] = [
            {each.name: _json_of(getattr(call, each.name)) for each in fields(call)}
            for call in self.calls
        ]
        return {name: _json_of(value) for name, value in told.items()}

    @property
    def forgotten(self) -> bool:
        """Whether the turn completed and its memory does not have all of it."""
        return self.state == "completed" and self.error_type is not None

    @property
    def otel_trace_ids(self) -> tuple[str, ...]:
        """Every OpenTelemetry trace of the turn, oldest first: one, or one for each resume."""
        parts = (self.manifest or {}).get("parts", [])
        known = [part["trace_id"] for part in parts if "trace_id" in part]
        newest = [self.otel_trace_id] if self.otel_trace_id is not None else []
        return tuple(dict.fromkeys([*known, *newest]))


def _json_of(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a session: good until another lease is granted, or the session goes.

    Attributes:
        token: says at each write that the lease is still the session's.
        fence: grows with every lease that the memory grants, whatever the session, and also when
            a session was deleted and made again: for other storage that refuses a stale writer.
    """

    session_id: str
    turn: int
    token: int
    fence: int = 0


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What ``load_turns`` is to read: see there."""

    newest: LastTurns | LastItems | None = None
    texts: bool = False


@dataclass(frozen=True, slots=True)
class RunItems:
    """Items of a run on their way into the memory.

    Attributes:
        position: the place of the first of them in the run, from 0.
        texts: each item as JSON, as ``stores.encode_items`` writes it.
        input_digest: kept with the run when its first items are stored.
        instead: they come in place of all that the run has.
    """

    run: int
    position: int
    texts: list[str] = field(repr=False)
    input_digest: str | None = None
    instead: bool = False

    def withdrawn(self) -> RunItems:
        """A write that removes these again, as all items of the run."""
        return replace(self, texts=[], instead=True)

    @property
    def withdraws(self) -> bool:
        """Whether this write only removes items."""
        return self.instead and not self.texts


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """What a turn says when it acquires its session.

    Attributes:
        input_digest: ``history.digest`` of the new input, where it is known before the run.
        otel_trace_id: kept with the turn from now on, so that one that never ends has it too.
        resume: the identity under which a run was parked for approval, when this one resumes it.
        read: what of the history is to be read at once, if the memory can and it is not much.
        input: the new input, to be stored at once as that of the turn's first run, if the memory
            can and the turn is a new one that retries no other.
        adopt: a run that this memory has not parked may begin a new turn.
        ticket: the asker's place in the line of a busy session, the same at each try; None: it
            does not wait. A free session with a line goes to the first ticket only.
    """

    session_id: str
    started_at: datetime
    idempotency_key: str | None = None
    input_digest: str | None = None
    resume: str | None = None
    read: ReadRequest | None = None
    input: RunItems | None = None
    otel_trace_id: str | None = None
    adopt: bool = False
    ticket: int | None = None


@dataclass(frozen=True, slots=True)
class CarriedRun:
    """A run that an earlier attempt of this turn left behind; its items lie in the new turn."""

    run: int
    input_digest: str | None
    item_count: int
    has_outputs: bool


@dataclass(frozen=True, slots=True)
class Acquired:
    """A session that was acquired.

    Attributes:
        resumed: the lease continues a parked turn.
        carried: runs of an earlier attempt with the same idempotency key.
        next_run: the number for the turn's next run; every run before it is used.
        loaded: what the request asked to read; None where that is still to be loaded. The
            request's own input is not part of it.
        stored: whether the request's input was stored.
        took_over: the turn whose lease had expired, and which became abandoned.
        manifest: what the record of a resumed turn has.
        journal: the calls of the parked or earlier turn, as far as the memory keeps a journal.
        started_at: when a resumed turn began, where the memory says so.
    """

    lease: Lease
    next_run: int = 1
    resumed: bool = False
    carried: tuple[CarriedRun, ...] = ()
    loaded: Loaded | None = None
    stored: bool = False
    took_over: int | None = None
    manifest: Manifest | None = None
    journal: tuple[JournalEntry, ...] = ()
    started_at: datetime | None = None

    def undone(self, request: AcquireRequest, at: datetime) -> tuple[list[RunItems], TurnEnd]:
        """What gives the session back as it was, where nobody will make the turn any more.

        A turn that was resumed waits as before; an input that was stored goes again.
        """
        if self.resumed and request.resume is not None:
            return [], TurnEnd("awaiting_approval", at, park=(request.resume,))
        stored = [request.input] if self.stored and request.input is not None else []
        return [given.withdrawn() for given in stored], TurnEnd("cancelled", at)


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended.

    Attributes:
        runs: the state of every run of this attempt, by number.
        discard: remove the items of the turn; its record keeps no words either.
        park: the identities of the runs that wait for approval.
        states: of those runs, what is stored so that another process can resume them.
        aliases: further identities of parked runs, each with one that the run has already: a
            resume may change what its state is known by.
        settles: the identities of parked runs that are done with: a resume of them completed, or
            parked again. A parked run that is not settled can be resumed again.
        waited: seconds until the turn had its session.
        unlisted: the turn held its session only to make room for a resume, and goes again.
        journal: the calls of the turn; they take the place of all entries that there are. None:
            the entries stay as they are.
        durable: the record must survive a power failure once the call returns.
    """

    state: TurnState
    ended_at: datetime
    runs: dict[int, RunState] = field(default_factory=dict)
    discard: bool = False
    park: tuple[str, ...] = ()
    durable: bool = False
    agent: str | None = None
    error_type: str | None = None
    sdk_trace_ids: tuple[str, ...] = ()
    otel_trace_id: str | None = None
    usage: dict[str, int] | None = None
    output_text: str | None = field(default=None, repr=False)
    history_digest: str | None = None
    manifest: Manifest | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    settles: tuple[str, ...] = ()
    waited: float | None = None
    unlisted: bool = False
    states: tuple[KeptState, ...] = ()
    journal: tuple[JournalEntry, ...] | None = None

    def __post_init__(self) -> None:
        if self.discard:
            object.__setattr__(self, "output_text", None)


END_FIELDS = (
    "agent",
    "error_type",
    "otel_trace_id",
    "usage",
    "output_text",
    "history_digest",
    "manifest",
    "waited",
)
"""The fields that a TurnRecord has from the TurnEnd of its turn, as they are."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A history as it was read.

    Attributes:
        turns: oldest first; turns without items are left out.
        complete: nothing older was left unread.
        corrupt: entries that could not be decoded; they are kept in the storage.
    """

    turns: list[Turn]
    complete: bool = True
    corrupt: int = 0
