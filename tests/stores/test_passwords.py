"""No password of a URL is shown, in whatever form somebody writes it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_middleware import (
    InvalidOption,
    PostgresSessionMemory,
    RedisSessionMemory,
    SessionMemoryError,
    SQLiteSessionMemory,
    open_memory,
    with_session_memory,
)
from session_middleware.stores.passwords import without_password


@pytest.mark.parametrize(
    ("shown", "safe"),
    [
        ("postgresql://u:secret@h/db", "postgresql://***@h/db"),
        ("redis://:se/cr@et@h:1/0", "redis://***@h:1/0"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("cannot reach redis://u:secret@h or redis://h", "cannot reach redis://***@h or redis://h"),
        ("cannot reach redis://h:6379: refused", "cannot reach redis://h:***"),
        ("x://h/db?password=secret&a=1", "x://h/db?***"),
        ("x://h/db?email=me@h&sig=secret", "x://***"),
        ("x://u:se?cret@h/db", "x://***"),
        ("sqlite:///chat.db", "sqlite:///chat.db"),
        ("sqlite://chat.db", "sqlite://chat.db"),
        ("mail me@example.org", "mail me@example.org"),
        ("postgres:/u:secret@h", "postgres:/***@h"),
        ("u:secret@h/db", "***@h/db"),
        ("postgresql://u:secret/db", "postgresql://u:***"),
        ("host=h password=secret user=u", "host=h password=***"),
        ("host=h password=a secret of words", "host=h password=***"),
        ("postgresql://u:a secret\nin lines@h/db", "postgresql://***@h/db"),
    ],
)
def test_no_password_is_shown(shown: str, safe: str) -> None:
    """Names, passwords and parameters of URLs are taken out; the rest stays readable."""
    assert without_password(shown) == safe


FORMS = [
    "postgresql://u:{}@h/db",
    "postgres:/u:{}@h",
    "POSTGRESQL://u:{}@h:5432/db?lease=soon",
    "postgresql://u:{}@h:port/db",
    "postgresql://u:{}@h/db?min_size=x",
    "postgresql://u:{}@/db",
    "postgresql://h/db?password={}&lease=soon",
    "postgresql://h/db?lease=soon&auth={}",
    "postgresqll://u:{}@h/db",
    "redis://:{}@h:1/x",
    "redis://:{}@h:port/0",
    "rediss://u:{}@h/0?replicas=many",
    "redis://h/0?password={}&lease=soon",
    "valkey://:{}@h/0?unknown=1",
    "rdis://:{}@h",
    "sqlite://u:{}@h/chat.db",
    "sqlite:///:memory:?sig={}",
    "sqlite:///chat.db?token={}",
    "sqlite:///chat.db?lease=soon&key={}",
    "mysql://u:{}@h/db",
    "u:{}@h/db",
    "u:{}@h",
    "host=h password={}",
    "host=h password={} user=u",
    "https://h/db?sig={}",
    "https://h/db?auth={}&x=1",
    ":memory:?auth={}",
    " postgresql://u:{}@h/db",
    "\npostgresql://u:{}@h/db\n",
]

ENTRIES: list[Callable[[str], Any]] = [
    open_memory,
    lambda url: open_memory(url, no_such_option=1),
    lambda url: with_session_memory(memory=url),
    SQLiteSessionMemory,
    PostgresSessionMemory,
    RedisSessionMemory,
]


def told(error: BaseException) -> str:
    """All that a log would show of an error, its causes included."""
    return "".join(traceback.format_exception(error, limit=0)) + repr(error)


PARTS = st.text(alphabet="abc XYZ019@:/?#&=%'\"\\\n\t;+.-_~$!äß\u3042", max_size=6)


@pytest.mark.parametrize("form", FORMS)
@given(before=PARTS, after=PARTS)
@settings(max_examples=30, deadline=None)
def test_no_error_shows_a_password(form: str, before: str, after: str) -> None:
    """Whatever stands around the secret, unescaped, and whoever is given the URL."""
    url = form.replace("{}", f"{before}SeCrEt7{after}")
    for entry in ENTRIES:
        try:
            shown = repr(entry(url))
        except SessionMemoryError as error:
            shown = told(error)
        assert "SeCrEt7" not in shown, (entry, url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///chat.db",
        "postgresql://u:secret@h/db",
        "postgres:/u:secret@h",
        "u:secret@h/db",
        "host=h password=secret",
    ],
)
def test_a_path_is_no_url(url: str) -> None:
    """db_path names a file: a URL in its place would become a file of that name."""
    with pytest.raises(InvalidOption, match="db_path must be a file") as raised:
        SQLiteSessionMemory(url)
    assert "secret" not in told(raised.value)


@pytest.mark.parametrize(
    "path", ["chat.db", "./u:x@h.db", "/data/u:x@h/chat.db", "C:/chat.db", "a=b.db", "me@home.db"]
)
def test_a_path_may_have_any_character(path: str) -> None:
    """What begins as a path does is one."""
    assert SQLiteSessionMemory(path).path.endswith(path.removeprefix("./"))
