"""What the URL and the options say, where the tables are, and who may make them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import asyncpg
import pytest

from session_middleware import PostgresSessionMemory, open_memory
from session_middleware.cli import main
from session_middleware.conformance.samples import user
from session_middleware.errors import InvalidMemoryUrl, InvalidOption, UnsupportedSchema
from session_middleware.stores.postgres.names import Names
from session_middleware.stores.postgres.schema import script
from session_middleware.stores.postgres.texts import readable, storable
from tests.support.postgres import make_database, with_database

URL = "postgresql://app:secret@db.example.com:5433/chat"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "url"),
        ({"url": URL, "lease": 0}, "lease"),
        ({"url": URL, "operation_timeout": "10"}, "operation_timeout"),
        ({"url": URL, "schema": 'a"b'}, "schema"),
        ({"url": URL, "table_prefix": "a b"}, "table_prefix"),
        ({"url": URL, "table_prefix": "x" * 60}, "table_prefix"),
        ({"url": URL, "max_size": 0}, "max_size"),
        ({"url": URL, "min_size": 5, "max_size": 2}, "min_size"),
        ({"url": f"{URL}?lease=5", "lease": 7.0}, "lease"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], named: str) -> None:
    """The error names the option, and shows no password."""
    with pytest.raises(InvalidOption, match=named) as raised:
        PostgresSessionMemory(**options)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "sqlite:///x.db", 7, f"{URL}?lease=soon"])
def test_wrong_urls_are_refused(url: Any) -> None:
    """The error shows a correct one, and no password."""
    with pytest.raises(InvalidMemoryUrl) as raised:
        PostgresSessionMemory(url)
    assert "secret" not in str(raised.value)


def test_options_may_be_parameters_of_the_url() -> None:
    """Both ways of opening read them; what is not ours is left to the driver."""
    url = f"{URL}?lease=5&schema=agents&sslmode=require&migrate=false"
    for memory in (PostgresSessionMemory(url), open_memory(url)):
        assert memory.lease_seconds == 5
        assert memory.identity == PostgresSessionMemory(URL, schema="agents").identity
    assert PostgresSessionMemory(URL).identity != PostgresSessionMemory(url).identity
    with pytest.raises(InvalidOption, match="unknown option 'leese'"):
        open_memory(URL, leese=5)


def test_the_driver_is_imported_only_when_it_is_needed() -> None:
    """Without it the package can be imported; making a memory says what to install."""
    script = (
        "import sys\n"
        "sys.modules['asyncpg'] = None\n"
        "from session_middleware import *\n"
        "from session_middleware.errors import MissingExtra\n"
        "try:\n"
        "    PostgresSessionMemory('postgresql://h/db')\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert "pip install 'session-middleware[postgres]'" in done.stdout


def test_texts_of_any_kind_are_stored_and_read_back() -> None:
    """Also those that PostgreSQL refuses, and those that look as if they had been escaped."""
    for text in ("plain", "", "nul \0", "\ud800", "\x1bjson:x", '\x1bjson:"x"', "Ä ☺"):
        stored = storable(text)
        assert stored is not None
        assert "\0" not in stored
        stored.encode()
        assert readable(stored) == text
    assert storable("plain") == "plain"


# --- the tables --------------------------------------------------------------------------------


async def test_many_memories_make_the_tables_at_once(postgres_server_url: str) -> None:
    """Whoever comes first makes them; nobody fails."""
    url = await make_database(postgres_server_url)
    memories = [PostgresSessionMemory(url, schema="agents", table_prefix="m_") for _ in range(8)]
    await asyncio.gather(*(memory.ping() for memory in memories))
    await memories[0].append_to_session("s", [user("1")])
    assert await memories[7].load_session("s") == [user("1")]
    for memory in memories:
        await memory.cleanup()
    connection: Any = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT * FROM agents.m_sessions")
    await connection.close()
    assert [dict(row)["conversation_history"] for row in rows] == [
        '[{"role": "user", "content": "1"}]'
    ]
    assert list(rows[0].keys()) == [
        "session_id",
        "conversation_history",
        "created_at",
        "updated_at",
    ]


async def test_a_program_without_the_right_to_make_tables(
    postgres_server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """migrate=False says what to do; after the SQL of the command the memory works."""
    url = await make_database(postgres_server_url)
    owner: Any = await asyncpg.connect(url)
    await owner.execute("DROP ROLE IF EXISTS plain")
    await owner.execute("CREATE ROLE plain LOGIN")
    memory = PostgresSessionMemory(url.replace("postgres@", "plain@"), migrate=False)
    try:
        with pytest.raises(UnsupportedSchema, match="session-middleware schema"):
            await memory.load_session("s")
        assert main(["schema"]) == 0
        await owner.execute(capsys.readouterr().out)
        await owner.execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO plain"
        )
        await owner.execute(
            "GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO plain"
        )
        await memory.append_to_session("s", [user("1")])
        assert await memory.load_session("s") == [user("1")]
        lines = [line async for line in memory.export()]
        raised = [line.replace('"fence": ', '"fence": 9') for line in lines]
        assert await memory.import_([lines[0], *raised[1:]], replace=True) == 1
    finally:
        await memory.cleanup()
        await owner.execute("DROP OWNED BY plain; DROP ROLE plain")
        await owner.close()


async def test_a_newer_layout_is_left_alone(postgres_server_url: str) -> None:
    """Tables that this version cannot use are refused before anything is written."""
    url = await make_database(postgres_server_url)
    connection: Any = await asyncpg.connect(url)
    await connection.execute(script(Names()))
    await connection.execute(
        "UPDATE session_middleware_layout SET version = 99, readable_from = 98"
    )
    await connection.close()
    memory = PostgresSessionMemory(url)
    with pytest.raises(UnsupportedSchema, match="newer version"):
        await memory.load_session("s")
    await memory.cleanup()


async def test_a_database_of_another_encoding_is_refused(postgres_server_url: str) -> None:
    """It could not store every item."""
    connection: Any = await asyncpg.connect(postgres_server_url)
    await connection.execute("DROP DATABASE IF EXISTS latin")
    await connection.execute(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    await connection.close()
    memory = PostgresSessionMemory(with_database(postgres_server_url, "latin"))
    with pytest.raises(UnsupportedSchema, match="UTF8"):
        await memory.load_session("s")
    await memory.cleanup()
