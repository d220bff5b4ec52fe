"""Who may see the page: hosts, origins, a token for the browser of whoever started it.

Every answer carries the headers that keep a browser from running or fetching anything that is not
the page's own.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Authorize = Callable[[Request], "bool | Awaitable[bool]"]
"""Says of a request whether it may see the page."""

COOKIE = "session_middleware_inspect"

_SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none, a form of the page itself has no origin
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_SAFE = ("GET", "HEAD")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets through what may see the page, and refuses the rest.

    Args:
        app: what answers.
        token: what a browser must have been given; None: none is asked for.
        authorize: says of each request whether it may; None: only this machine may.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None = None, authorize: Authorize | None = None
    ) -> None:
        self._app = app
        self._token = token
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        secured = _secured(send)
        request = Request(scope)
        refused = self._refused(request) or await self._unauthorized(request)
        if refused is not None:
            await refused(scope, receive, secured)
            return
        await self._app(scope, receive, secured)

    def _refused(self, request: Request) -> Response | None:
        """The answer to a request from another site, or for another host."""
        host = request.headers.get("host", "")
        if self._authorize is None and not is_loopback(_name_of(host)):
            return _text(421, "this page answers for this machine alone: open it as 127.0.0.1")
        if request.method in _SAFE:
            return None
        if request.method != "POST":
            return _text(405, "this page knows GET and POST")
        origin = request.headers.get("origin", "")
        if urlsplit(origin).netloc != host or not host:
            return _text(403, "a change must come from the page itself: open it and try again")
        return None

    async def _unauthorized(self, request: Request) -> Response | None:
        if self._authorize is not None:
            answer = self._authorize(request)
            allowed = answer if isinstance(answer, bool) else await answer
            return None if allowed else _text(403, "you may not see this page")
        if self._token is None:
            client = request.client
            if client is None or is_loopback(client.host):
                return None
            return _text(403, "this page answers this machine alone, unless authorize= is given")
        given = request.query_params.get("token")
        if request.method in _SAFE and given is not None and _same(given, self._token):
            return self._with_cookie(request)
        if _same(request.cookies.get(COOKIE, ""), self._token):
            return None
        return _text(401, "open the address that was printed when this page was started")

    def _with_cookie(self, request: Request) -> Response:
        """Take the token out of the address, and put it where only this page gets it."""
        rest = [pair for pair in request.query_params.multi_items() if pair[0] != "token"]
        place = request.url.path + (f"?{urlencode(rest)}" if rest else "")
        answer = RedirectResponse(place, status_code=303)
        answer.set_cookie(COOKIE, self._token or "", httponly=True, samesite="strict", path="/")
        return answer


def _secured(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY.items():
                headers[name] = value
        await send(message)

    return with_headers


def _name_of(host: str) -> str:
    return urlsplit(f"//{host}").hostname or ""


def _same(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode(), wanted.encode())


def _text(status: int, words: str) -> Response:
    return PlainTextResponse(words + "\n", status)
