"""The pages of the inspector, as a browser gets them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from agents import Runner

from session_middleware import (
    InMemorySessionMemory,
    InvalidOption,
    last_turns,
    with_session_memory,
)
from session_middleware.conformance.conversations import corrupted, parked
from session_middleware.conformance.samples import assistant as answer
from session_middleware.conformance.samples import user
from session_middleware.conformance.steps import acquire, end
from session_middleware.inspect import app, serve
from session_middleware.inspect.guard import COOKIE
from session_middleware.testing.models import assistant, call, scripted_agent
from tests.support.approvals import paying
from tests.support.sessions import carried_out, counted

HERE = "http://127.0.0.1:8000"
HARMFUL = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) **bold**",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe \x1b]0;owned\x07 \x1b[31mred",
    "{{ 7 * 7 }} {% raw %}",
    "' onmouseover='alert(1)",
)


@asynccontextmanager
async def browsing(memory: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the page, on this machine."""
    transport = httpx.ASGITransport(app(memory, **options))
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
        yield client


async def page(memory: Any, path: str, status: int = 200, **options: Any) -> str:
    """The text of a page."""
    async with browsing(memory, **options) as client:
        response = await client.get(path)
    assert response.status_code == status, response.text
    return response.text


# --- what is shown -----------------------------------------------------------------------------


async def test_an_empty_memory_says_what_to_do(each_memory: Any) -> None:
    text = await page(each_memory, "/")
    assert "There are no sessions yet" in text
    assert "Nothing waits" in await page(each_memory, "/pending")


async def test_sessions_are_listed_searched_and_paged(each_memory: Any) -> None:
    """By id and by title, in pages that lead to each other."""
    for number in range(30):
        await each_memory.append_to_session(f"user-{number:02}", [user(f"question {number}")])
    await each_memory.set_title("user-07", "Lost luggage")
    async with browsing(each_memory) as client:
        first = (await client.get("/?order=id")).text
        more = re.search(r'rel="next" href="([^"]+)"', first)
        assert more is not None
        second = (await client.get(more[1].replace("&amp;", "&"))).text
        by_title = (await client.get("/?q=luggage")).text
        by_id = (await client.get("/?q=user-1")).text
    shown = [set(re.findall(r"id=(user-\d\d)", text)) for text in (first, second)]
    assert not shown[0] & shown[1]
    assert len(shown[0] | shown[1]) == 30
    assert set(re.findall(r"id=(user-\d\d)", by_title)) == {"user-07"}
    assert len(set(re.findall(r"id=(user-1\d)", by_id))) == 10


async def test_trouble_stands_out(each_memory: Any) -> None:
    """A failed, an abandoned and a repaired session are marked; a good one is not."""
    await carried_out("run", scripted_agent(assistant("1")), "hi", each_memory, "good")
    failing = scripted_agent(RuntimeError("down"))
    with pytest.raises(RuntimeError):
        await carried_out("run", failing, "hi", each_memory, "failed")
    lost = await acquire(each_memory, "abandoned")
    await each_memory.append_items(lost.lease, 1, 0, [user("1")])
    await each_memory.release("abandoned")
    orphan = {"type": "function_call_output", "call_id": "none", "output": "x"}
    await each_memory.append_to_session("repaired", [user("0"), orphan])
    await carried_out("run", scripted_agent(assistant("1")), "hi", each_memory, "repaired")
    marked = {name: bool(words) for name, words in (await troubles(each_memory)).items()}
    assert marked == {"good": False, "failed": True, "abandoned": True, "repaired": True}


async def test_a_session_with_items_that_cannot_be_read_stands_out(each_memory: Any) -> None:
    """Wherever they are among its newest, and further back once a run was to be given them."""
    words = [user("1"), answer("2")]
    for session_id in ("good", "first", "old"):
        for _ in range(2 if session_id != "old" else 60):
            await each_memory.append_to_session(session_id, words)
    for session_id in ("first", "old"):
        await corrupted(each_memory, session_id, 1)
    assert await troubles(each_memory) == {"good": [], "first": ["unreadable items"], "old": []}
    assert "unreadable items" in await page(each_memory, "/session?id=first")
    await carried_out("run", scripted_agent(assistant("1")), "hi", each_memory, "old")
    assert (await troubles(each_memory))["old"] == ["repaired"]
    assert "corrupt_entry (2)" in await page(each_memory, "/session?id=old")


async def test_a_page_of_sessions_asks_twice(each_memory: Any, monkeypatch: Any) -> None:
    """Once for the sessions and once for all their newest turns, however many there are."""
    for number in range(30):
        await each_memory.append_to_session(f"s{number}", [user("1")])
    asked: list[str] = []
    for name in ("list_page", "newest_turns", "turns", "read_copies", "parked_runs"):
        method = getattr(each_memory, name)

        async def counted_call(*given: Any, method: Any = method, **named: Any) -> Any:
            asked.append(method.__name__)
            return await method(*given, **named)

        monkeypatch.setattr(each_memory, name, counted_call)
    await page(each_memory, "/")
    assert asked == ["list_page", "newest_turns"]


async def troubles(memory: Any) -> dict[str, list[str]]:
    """The words that mark each session of the list, but for the names of states."""
    rows = re.findall(r"<li.*?</li>", await page(memory, "/"), re.DOTALL)
    found = {}
    for row in rows:
        name = re.search(r"id=(\w+)", row)
        assert name is not None
        words = re.findall(r'class="tag bad"[^>]*>([^<]*)<', row)
        assert bool(words) <= ('class="trouble"' in row)
        found[name[1]] = words or ["trouble"] * ('class="trouble"' in row)
    return found


async def test_a_conversation_is_shown_with_its_turns(each_memory: Any) -> None:
    """Turns with state, agent, calls beside outputs, tokens, and what each model call was given."""
    agent = scripted_agent(
        call("look", {"at": "the sky"}),
        assistant("blue"),
        tools=[counted("look", [], strict_mode=False)],
    )
    await carried_out("run", agent, "What colour?", each_memory)
    text = await page(each_memory, "/session?id=s")
    for words in (
        "What colour?",
        "the sky",
        "look done",
        "blue",
        "Turn 1",
        "completed",
        "Assistant",
    ):
        assert words in text
    assert "run=1&amp;call=2" in text
    given = await page(each_memory, "/given?id=s&turn=1&run=1&call=2")
    assert "look done" in given
    assert "Given to the model" in given


async def test_what_a_window_left_out_is_marked(each_memory: Any) -> None:
    """Beside what the model was given."""
    agent = scripted_agent(*map(assistant, ("one", "two", "three")))
    run = with_session_memory(Runner.run, memory=each_memory, window=last_turns(1))
    for text in ("first", "second", "third"):
        await run(agent, text, session_id="s")
    text = await page(each_memory, "/given?id=s&turn=3")
    stored, given = text.split('aria-label="Given to the model"')
    left_out = re.findall(r'left-out">.*?class="words" dir="auto">([^<]*)<', stored, re.DOTALL)
    assert "first" in left_out
    assert "came later" in stored
    assert "second" not in left_out
    assert "first" not in given
    assert "window left out 1 older turn<" in text


async def test_long_sessions_and_items_come_in_pieces(each_memory: Any) -> None:
    """Each page stays under 500 KB, whatever is stored."""
    for number in range(60):
        await each_memory.append_to_session("s", [user(f"q{number} " + "x" * 50_000), answer("a")])
    async with browsing(each_memory) as client:
        text = (await client.get("/session?id=s")).text
        older = re.search(r'rel="prev" href="([^"]+)"', text)
        assert older is not None
        before = (await client.get(older[1].replace("&amp;", "&"))).text
        item = (await client.get("/item?id=s&turn=60&n=0")).text
        given = (await client.get("/")).text
    assert max(map(len, (text, before, given))) < 500_000
    assert "q59" in text
    assert "q39" in before
    assert len(item) > 50_000
    assert re.findall(r"(\d+,\d+) characters more", text)


async def test_a_session_that_went_away_says_so(each_memory: Any) -> None:
    assert "not there" in await page(each_memory, "/session?id=unknown", 404)
    assert "not there" in await page(each_memory, "/given?id=unknown&turn=1", 404)
    await page(each_memory, "/item?id=unknown&turn=1&n=0", 404)
    await page(each_memory, "/session?id=", 400)
    await page(each_memory, "/?order=size", 400)


async def test_a_memory_that_is_down_says_so(memory: Any) -> None:
    """With the reason, and without a traceback."""
    await memory.append_to_session("s", [user("1")])
    await memory.cleanup()
    text = await page(memory, "/", 503)
    assert "cannot be read" in text
    assert "Traceback" not in text


# --- nothing executes --------------------------------------------------------------------------


@pytest.mark.parametrize("words", HARMFUL)
async def test_words_stay_words(each_memory: Any, words: str) -> None:
    """In items, titles, tool names, arguments: nothing is markup, nothing steers a terminal."""
    agent = scripted_agent(
        call("look", {"at": words}),
        assistant(words),
        tools=[counted("look", [], strict_mode=False)],
        name=words,
    )
    await carried_out("run", agent, words, each_memory)
    await each_memory.set_title("s", words.strip())
    await each_memory.set_metadata("s", {"note": words})
    for path in ("/", "/session?id=s", "/given?id=s&turn=1", "/item?id=s&turn=1&n=0"):
        text = await page(each_memory, path)
        if path.startswith("/item"):
            assert "\x1b" not in text
            continue
        assert "<script>alert" not in text
        assert "<img" not in text
        assert not re.search(r"<[^>]*\sonmouseover=", text)
        assert 'href="javascript:' not in text
        for character in "\x1b\x07\N{RIGHT-TO-LEFT OVERRIDE}":
            assert character not in text


async def test_pictures_are_told_and_not_loaded(each_memory: Any) -> None:
    """By their type and size."""
    picture = "data:image/png;base64," + "A" * 200_000
    content = [{"type": "input_image", "image_url": picture}, {"type": "input_text", "text": "see"}]
    await each_memory.append_to_session("s", [{"role": "user", "content": content}])
    text = await page(each_memory, "/session?id=s")
    assert "image/png" in text
    assert "AAAA" not in text
    assert len(text) < 50_000


async def test_an_address_names_its_session_whatever_its_id(each_memory: Any) -> None:
    """Slashes, quotes, percent signs, ampersands."""
    for session_id in ("a/b?c=d&e", "100%", 'it\'s "quoted"', "#", "ä \N{MAN}"):
        await each_memory.append_to_session(session_id, [user("1")])
    async with browsing(each_memory) as client:
        text = (await client.get("/")).text
        links = re.findall(r'class="id" href="([^"]+)"', text)
        assert len(links) == 5
        for link in links:
            assert (await client.get(link.replace("&amp;", "&").replace("&#39;", "'"))).is_success


# --- who may see and change --------------------------------------------------------------------


async def test_every_answer_forbids_what_is_not_the_pages_own(each_memory: Any) -> None:
    async with browsing(each_memory) as client:
        for path in ("/", "/static/live.js", "/nothing"):
            headers = (await client.get(path)).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"


async def test_the_token_opens_the_page_once_and_for_all(each_memory: Any) -> None:
    """It leaves the address at once, and a wrong one opens nothing."""
    async with browsing(each_memory, token="t0ken") as client:
        for path in ("/", "/?token=wrong", "/session?id=s", "/static/live.js"):
            assert (await client.get(path)).status_code == 401
        opened = await client.get("/?token=t0ken&q=a")
        assert (opened.status_code, opened.headers["location"]) == (303, "/?q=a")
        cookie = opened.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert (await client.get("/")).status_code == 200
        client.cookies.set(COOKIE, "wrong")
        client.cookies.delete(COOKIE)
        assert (await client.get("/")).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""]
)
async def test_another_host_is_refused(each_memory: Any, host: str) -> None:
    """A name that somebody points at this machine does not open the page."""
    async with browsing(each_memory) as client:
        response = await client.get("/", headers={"host": host})
    assert response.status_code == 421


async def test_another_machine_is_refused(each_memory: Any) -> None:
    transport = httpx.ASGITransport(app(each_memory), client=("10.0.0.9", 5000))
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
        assert (await client.get("/")).status_code == 403


async def test_a_login_of_ones_own_decides(each_memory: Any) -> None:
    """Plain or a coroutine function; then any host and machine may."""

    async def asked(request: Any) -> bool:
        return bool(request.headers.get("x-user") == "ada")

    rules: tuple[Callable[[Any], Any], ...] = (
        asked,
        lambda request: request.headers.get("x-user") == "ada",
    )
    for authorize in rules:
        transport = httpx.ASGITransport(
            app(each_memory, authorize=authorize), client=("10.0.0.9", 5000)
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://chat.example") as client:
            assert (await client.get("/")).status_code == 403
            assert (await client.get("/", headers={"x-user": "ada"})).status_code == 200


async def test_it_listens_to_others_only_behind_a_login(memory: Any) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.4", "chat.example"):
        with pytest.raises(InvalidOption, match=r"127\.0\.0\.1"):
            serve(memory, host=host)


async def test_another_tenant_is_not_seen(each_memory: Any) -> None:
    """Through a scope there are only its own sessions, on every page."""
    await parked(each_memory, each_memory.scoped("b").full_id("theirs"), "p")
    mine = each_memory.scoped("a")
    await mine.append_to_session("mine", [user("1")])
    assert "theirs" not in await page(mine, "/")
    assert "mine" in await page(mine, "/")
    assert "theirs" not in await page(mine, "/pending")
    for session_id in ("theirs", "b:theirs", "../b:theirs"):
        await page(mine, f"/session?id={session_id}", 404)
    form = {"id": "b:theirs", "turn": "1", "call": "call_f", "decision": "approve"}
    async with browsing(mine, allow_changes=True) as client:
        await client.post("/decide", data=form, headers={"origin": HERE})
    (waiting,) = await each_memory.pending()
    assert waiting.calls[0].approved is None


# --- approvals ---------------------------------------------------------------------------------


async def test_a_person_approves_and_the_service_resumes(each_memory: Any) -> None:
    """The decision is kept by the memory; nothing runs in the page."""
    counts: list[str] = []
    agent = paying(counts)
    await carried_out("run", agent, "Pay", each_memory)
    async with browsing(each_memory, allow_changes=True) as client:
        text = (await client.get("/pending")).text
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', text))
        form = {**fields, "decision": "approve", "message": ""}
        done = await client.post("/decide", data=form, headers={"origin": HERE})
        assert done.status_code == 303
        again = await client.post(
            "/decide", data={**form, "decision": "reject"}, headers={"origin": HERE}
        )
        assert again.status_code == 303
        assert "approved" in (await client.get("/pending")).text
    assert counts == []
    (waiting,) = await each_memory.pending()
    await carried_out("run", agent, await waiting.restore(agent), each_memory)
    assert counts == ["pay"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:9"])
async def test_a_change_from_elsewhere_is_refused(each_memory: Any, origin: str) -> None:
    await parked(each_memory)
    form = {"id": "s", "turn": "1", "call": "call_f", "decision": "approve"}
    async with browsing(each_memory, allow_changes=True) as client:
        headers = {"origin": origin} if origin else {}
        assert (await client.post("/decide", data=form, headers=headers)).status_code == 403
    (waiting,) = await each_memory.pending()
    assert waiting.calls[0].approved is None


async def test_nothing_is_changed_unless_that_is_allowed(each_memory: Any) -> None:
    """Neither by a form nor by a GET, whatever it says."""
    await parked(each_memory)
    form = {"id": "s", "turn": "1", "call": "call_f", "decision": "approve"}
    async with browsing(each_memory) as client:
        assert '<form class="decide"' not in (await client.get("/pending")).text
        refused = await client.post("/decide", data=form, headers={"origin": HERE})
        assert refused.status_code == 403
    async with browsing(each_memory, allow_changes=True) as client:
        assert (await client.get("/decide", params=form)).status_code == 405
        for wrong in ({}, {**form, "turn": "x"}, {**form, "call": "none"}, {"id": "x" * 20_000}):
            answer = await client.post("/decide", data=wrong, headers={"origin": HERE})
            assert answer.status_code == 400
        assert (await client.put("/decide")).status_code == 405
    (waiting,) = await each_memory.pending()
    assert waiting.calls[0].approved is None


# --- live --------------------------------------------------------------------------------------


async def test_a_page_reads_without_a_lease(each_memory: Any) -> None:
    """While a turn holds the session, and that turn goes on."""
    held = await acquire(each_memory)
    await each_memory.append_items(held.lease, 1, 0, [user("1")])
    text = await page(each_memory, "/session?id=s")
    assert "running" in text
    await each_memory.append_items(held.lease, 1, 1, [answer("2")])
    await end(each_memory, held)
    assert "completed" in await page(each_memory, "/session?id=s")


def test_what_cannot_be_looked_at_is_refused() -> None:
    with pytest.raises(InvalidOption):
        app(object())  # type: ignore[arg-type]
    for url in ("http://localhost:6006/", "javascript:alert('{trace_id}')"):
        with pytest.raises(InvalidOption, match="trace_id"):
            app(InMemorySessionMemory(), trace_url=url)


async def test_traces_are_linked(each_memory: Any) -> None:
    acquired = await acquire(each_memory)
    await each_memory.append_items(acquired.lease, 1, 0, [user("1")])
    await end(each_memory, acquired, otel_trace_id=f"{7:032x}")
    text = await page(each_memory, "/session?id=s", trace_url="http://t.example/{trace_id}")
    assert f'href="http://t.example/{7:032x}"' in text
