"""The pages, their addresses, and what each of them reads from the memory.

A page reads a page of sessions or of turns and holds nothing between two requests; it takes no
lease, and changes nothing but a decision that a person makes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qs, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from session_middleware import SessionInfo, TurnMemory, words
from session_middleware.errors import (
    DuplicateTurn,
    InvalidOption,
    InvalidSessionId,
    SessionMemoryError,
    UnknownState,
)
from session_middleware.inspect import telling
from session_middleware.inspect.drawing import TEMPLATES, folder, timeline, tokens_chart
from session_middleware.inspect.guard import Authorize, Guard
from session_middleware.inspect.live import Live, is_fragment
from session_middleware.stores.managed_store import Order
from session_middleware.stores.scoped import ScopedMemory

Memory: TypeAlias = TurnMemory | ScopedMemory

SESSIONS = 25  # on a page
TURNS = 20  # on a page
ITEMS = 200  # on each side of a comparison
PIECE = 200_000  # characters of an item on its own page
_BODY = 10_000  # bytes of a form
_ORDERS = {"updated": "last activity", "created": "newest", "id": "id"}


def app(
    memory: Memory,
    *,
    authorize: Authorize | None = None,
    allow_changes: bool = False,
    trace_url: str | None = None,
    token: str | None = None,
) -> ASGIApp:
    """Make the page an ASGI app, to be mounted behind a login.

    Args:
        memory: the memory to show, or the scope of one tenant: ``memory.scoped("tenant")``.
        authorize: given a ``starlette.requests.Request``, says whether it may see the page; may
            be a coroutine function. None: only browsers on this machine may.
        allow_changes: let people approve and reject calls that wait.
        trace_url: the address of a trace in a tracing tool, with ``{trace_id}`` in it.
        token: what the first address must carry as ``?token=``; None: none is asked for.

    Raises:
        InvalidOption: the memory cannot be looked at, or ``trace_url`` names no trace.

    Example:
        service.mount("/sessions", app(memory, authorize=lambda request: request.user.is_staff))
    """
    if not isinstance(memory, (TurnMemory, ScopedMemory)):
        raise InvalidOption(
            f"memory must be a memory with turns, got {type(memory).__name__}: open one with "
            "open_memory()"
        )
    if trace_url is not None and not (
        trace_url.startswith(("http://", "https://")) and "{trace_id}" in trace_url
    ):
        raise InvalidOption(
            "trace_url must be an http address with {trace_id} in it, such as "
            "'http://localhost:6006/traces/{trace_id}'"
        )
    live = Live()
    pages = _Pages(memory, live, allow_changes, trace_url)
    starlette = Starlette(
        routes=[
            Route("/", live.timed(pages.sessions)),
            Route("/session", live.timed(pages.session)),
            Route("/given", pages.given),
            Route("/item", pages.item),
            Route("/pending", live.timed(pages.pending)),
            Route("/decide", pages.decide, methods=["POST"]),
            Route("/events", pages.events),
            Mount("/static", StaticFiles(directory=folder("static"))),
        ],
        exception_handlers={SessionMemoryError: pages.problem},
    )
    return Guard(starlette, token=token, authorize=authorize)


class _Pages:
    """The pages of one memory."""

    def __init__(
        self, memory: Memory, live: Live, allow_changes: bool, trace_url: str | None
    ) -> None:
        self._memory = memory
        self._live = live
        self._allow_changes = allow_changes
        self._trace_url = trace_url

    # --- sessions --------------------------------------------------------------------------

    async def sessions(self, request: Request) -> Response:
        """The list: search, order, pages."""
        query = request.query_params
        order = cast(Order, query.get("order", "updated"))  # checked by the memory
        search = query.get("q", "").strip()
        page = await self._found(search, order, query.get("after") or None)
        now = datetime.now(UTC)
        newest = await self._memory.newest_turns([info.session_id for info in page])
        rows = [
            {"info": info, "troubles": telling.troubles_of(info, each, now)}
            for info, each in zip(page, newest, strict=True)
        ]
        more = None
        if len(page) == SESSIONS:
            more = urlencode({"q": search, "order": order, "after": page[-1].cursor})
        return self._page(
            request,
            "sessions.html",
            rows=rows,
            search=search,
            order=order,
            orders=_ORDERS,
            more=more,
            after=query.get("after"),
            events="events?" + urlencode({"q": search, "order": order}),
        )

    async def _found(self, search: str, order: Order, after: str | None) -> list[SessionInfo]:
        """The sessions whose id begins with the words, or whose title has them in it."""
        if not search:
            return await self._memory.sessions(None, SESSIONS, after, order)
        found = await self._memory.sessions(search, SESSIONS, after, order)
        if after is None and len(found) < SESSIONS:
            recent = await self._memory.sessions(None, 500, None, order)
            known = {info.session_id for info in found}
            found += [
                info
                for info in recent
                if info.session_id not in known and _has(info, search.casefold())
            ][: SESSIONS - len(found)]
        return found

    # --- one session -----------------------------------------------------------------------

    async def session(self, request: Request) -> Response:
        """A conversation: its newest turns, or those before a turn."""
        session_id = request.query_params.get("id", "")
        before = _number(request, "before")
        info = await self._memory.session_info(session_id)
        if info is None:
            return self._gone(request, session_id)
        records = await self._memory.turns(session_id, limit=TURNS, before=before)
        counts = await self._stored(session_id, records)
        turns = [telling.told_turn(each, counts.get(each.turn, 0)) for each in records]
        (newest,) = await self._memory.newest_turns([session_id])
        return self._page(
            request,
            "session.html",
            info=info,
            troubles=telling.troubles_of(info, newest, datetime.now(UTC)),
            turns=turns[::-1],
            left_out=None if newest is None else telling.left_out(newest.record),
            chart=tokens_chart(records[::-1]),
            timeline=timeline(records[::-1]),
            before=before,
            older=records[-1].turn if len(records) == TURNS and records[-1].turn > 1 else None,
            trace_url=self._trace_url,
            waiting=await self._memory.pending(session_id),
            events="events?" + urlencode({"id": session_id}),
        )

    async def _stored(self, session_id: str, records: list[Any]) -> dict[int, int]:
        """How many items the storage has of each turn, those that cannot be read included."""
        if not records:
            return {}
        memory: Any = self._memory
        if isinstance(memory, ScopedMemory):
            session_id, memory = memory.full_id(session_id), memory.memory
        copies = await memory.read_copies(session_id, records[-1].turn - 1, TURNS)
        return {copy.record.turn: len(copy.texts) for copy in copies}

    async def given(self, request: Request) -> Response:
        """What a model call was given, beside what is stored."""
        session_id = request.query_params.get("id", "")
        turn, run, call = (_number(request, name) or 1 for name in ("turn", "run", "call"))
        records = await self._memory.turns(session_id, limit=TURNS, before=turn + 1)
        record = records[0] if records and records[0].turn == turn else None
        if record is None:
            return self._gone(request, session_id)
        given = await self._memory.history_at(session_id, turn, run, call)
        stored = [item for each in records[::-1] for item in each.items]
        left, right = telling.compared(stored, len(record.items), given)
        return self._page(
            request,
            "given.html",
            session_id=session_id,
            record=record,
            run=run,
            call=call,
            calls=telling.model_calls(record),
            left=left[-ITEMS:],
            right=right[-ITEMS:],
            left_more=max(0, len(left) - ITEMS),
            right_more=max(0, len(right) - ITEMS),
            first=records[-1].turn,
            left_out=telling.left_out(record),
        )

    async def item(self, request: Request) -> Response:
        """One item of a turn as JSON, in pieces."""
        session_id = request.query_params.get("id", "")
        turn, number = _number(request, "turn") or 1, _number(request, "n") or 0
        at = _number(request, "at") or 0
        records = await self._memory.turns(session_id, limit=1, before=turn + 1)
        if not records or records[0].turn != turn or not 0 <= number < len(records[0].items):
            return PlainTextResponse("there is no such item any more\n", 404)
        text = json.dumps(records[0].items[number], ensure_ascii=False, indent=2)
        piece = words.harmless(text[at : at + PIECE])
        if at + PIECE < len(text):
            piece += f"\n\n… {len(text) - at - PIECE:,} characters more: add &at={at + PIECE}"
        return PlainTextResponse(piece.encode("utf-8", "replace"))

    # --- approvals -------------------------------------------------------------------------

    async def pending(self, request: Request) -> Response:
        """Everything that waits for a person."""
        waiting = await self._memory.pending()
        return self._page(
            request,
            "pending.html",
            waiting=waiting[:SESSIONS],
            more=max(0, len(waiting) - SESSIONS),
            events="events?pending=1",
        )

    async def decide(self, request: Request) -> Response:
        """A person approved or rejected a call; the service that has the agent resumes."""
        if not self._allow_changes:
            return PlainTextResponse("this page was started without --allow-changes\n", 403)
        form = await _form(request)
        approve = form.get("decision") == "approve"
        message = form.get("message", "").strip() or None
        try:
            await self._memory.decide(
                form.get("id", ""),
                int(form.get("turn", "0")),
                form.get("call", ""),
                approve,
                None if approve else message,
            )
        except DuplicateTurn:
            pass  # the page that follows shows the decision that stands
        except ValueError:
            return PlainTextResponse("the form is not whole\n", 400)
        base = request.scope.get("root_path", "")
        return RedirectResponse(f"{base}/pending", status_code=303)

    # --- live ------------------------------------------------------------------------------

    async def events(self, request: Request) -> Response:
        """Say when what a page shows has changed."""
        query = request.query_params
        if "id" in query:
            look = self._look_at_session(query["id"])
        elif "pending" in query:
            look = self._look_at_pending
        else:
            look = self._look_at_sessions(
                query.get("q", ""), cast(Order, query.get("order", "updated"))
            )
        return StreamingResponse(self._live.changes(look), media_type="text/event-stream")

    def _look_at_session(self, session_id: str) -> Callable[[], Awaitable[Any]]:
        async def look() -> Any:
            info = await self._memory.session_info(session_id)
            return info, await self._memory.pending(session_id)

        return look

    async def _look_at_pending(self) -> Any:
        return await self._memory.pending()

    def _look_at_sessions(self, search: str, order: Order) -> Callable[[], Awaitable[Any]]:
        return lambda: self._memory.sessions(search or None, SESSIONS, None, order)

    # --- answers ---------------------------------------------------------------------------

    def _page(self, request: Request, template: str, status: int = 200, **told: Any) -> Response:
        """The page; what is live of it alone, where the script of the page asks."""
        told |= {
            "base": request.scope.get("root_path", ""),
            "now": datetime.now(UTC),
            "allow_changes": self._allow_changes,
            "fragment": is_fragment(request),
        }
        text = TEMPLATES.get_template(template).render(**told)
        return Response(text.encode("utf-8", "replace"), status, media_type="text/html")

    def _gone(self, request: Request, session_id: str) -> Response:
        return self._page(
            request,
            "problem.html",
            404,
            what="This session is not there",
            hint="It was deleted, or never had anything stored in it.",
            detail=words.harmless(session_id),
        )

    async def problem(self, request: Request, error: Exception) -> Response:
        """The memory refused, or is down."""
        if isinstance(error, (InvalidOption, InvalidSessionId, UnknownState)):
            what, status = "This cannot be shown", 400
        else:
            what, status = "The memory cannot be read", 503
        hint = "The page tries again by itself as soon as it is there."
        return self._page(
            request,
            "problem.html",
            status,
            what=what,
            hint=hint if status == 503 else "Go back to the list.",
            detail=words.harmless(str(error)),
        )


def _has(info: SessionInfo, words: str) -> bool:
    return words in (info.title or "").casefold() or words in info.session_id.casefold()


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY:
            return {}
    pairs = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in pairs.items()}
