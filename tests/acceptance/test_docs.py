"""The documentation is true: its code runs, its tables are complete, its links lead somewhere.

A ``python`` block is executed, top-level ``await`` included; one with a ``title`` is a file of that
name, run by a process of its own. A ``text`` block after either is what it printed. A ``sql`` block
is executed on the page's chat.db, and ``-- error:`` in its first line says how SQLite must refuse
it; a ``postgresql`` block is executed on the database of DATABASE_URL. The blocks of a page share
their names, as its reader does.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import runpy
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from agents import MultiProvider
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import session_middleware
from session_middleware.testing.models import LocalModel
from tests.support import ROOT
from tests.support.postgres import make_database
from tests.support.programs import Programs

TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]


def run_python(example: Example) -> None:
    """Execute the block; what it prints is what a text block after it must say."""
    names = example.namespace
    names.setdefault("__name__", "__main__")
    line = example.line + 1
    tree = ast.parse(example.parsed)
    ast.increment_lineno(tree, line - 1)
    code = compile(tree, example.path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)
    names["_printed"] = printed.getvalue()


_PROGRAM = RawFencedCodeBlockLexer(re.compile(r'python title="(?P<file>[\w.]+)"$\n', re.MULTILINE))


def files(document: Document) -> Iterator[Region]:
    """The blocks that are files."""
    for region in _PROGRAM(document):
        region.parsed = region.lexemes["source"]
        region.evaluator = run_program
        yield region


def run_program(example: Example) -> None:
    """Save the block under its title and run it, as the reader does."""
    file = Path(example.region.lexemes["file"])
    file.write_text(example.parsed)
    done = example.namespace["_programs"].run(str(file))
    assert (done.returncode, done.stderr) == (0, "")
    example.namespace["_printed"] = done.stdout


def compare_text(example: Example) -> None:
    """The block is what the python block before it printed."""
    assert example.namespace.pop("_printed") == example.parsed


def run_sql(example: Example) -> None:
    """Execute the statements as any SQLite program would."""
    refused = re.match(r"-- error: (.+)", example.parsed)
    connection = sqlite3.connect("chat.db")
    try:
        if refused:
            with pytest.raises(sqlite3.Error, match=re.escape(refused[1])):
                connection.executescript(example.parsed)
        else:
            connection.executescript(example.parsed)
    finally:
        connection.close()


def run_postgresql(example: Example) -> None:
    """Execute the statements as psql would."""
    asyncio.run(_execute(str(example.parsed)))


async def _execute(statements: str) -> None:
    connection: Any = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


SYBIL = Sybil(
    [
        CodeBlockParser("python", run_python),
        files,
        CodeBlockParser("text", compare_text),
        CodeBlockParser("sql", run_sql),
        CodeBlockParser("postgresql", run_postgresql),
    ]
)


@pytest.fixture(autouse=True)
def _models_run_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that names no model gets one that answers from its input, instead of a provider's.

    A page may leave the run middleware installed, as a program would.
    """
    monkeypatch.setattr(MultiProvider, "get_model", lambda *_: LocalModel())
    yield
    session_middleware.uninstall()


@pytest.fixture
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A page of the documentation, with the server that it speaks of."""
    asked: Path = request.param
    if asked.name == "redis.md":
        server = request.getfixturevalue("redis_url")
        monkeypatch.setenv("REDIS_URL", server)
    if asked.name != "postgres.md":
        yield asked
        return
    server = request.getfixturevalue("postgres_server_url")
    monkeypatch.setenv("DATABASE_URL", asyncio.run(make_database(server)))
    yield asked
    asyncio.run(_execute("DROP OWNED BY app; DROP ROLE app"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name, indirect=True)
def test_code_runs(page: Path, programs: Programs) -> None:
    """Every block of the page does what the page says, in the order of the page."""
    document = SYBIL.parse(page)
    document.namespace["_programs"] = programs
    for example in document.examples():
        example.evaluate()


def test_readme_function_remembers() -> None:
    """The function among the ten lines that matter returns what its comment says."""
    document = SYBIL.parse(ROOT / "README.md")
    for example in document.examples():
        example.evaluate()
    names: dict[str, Any] = document.namespace
    assert asyncio.run(names["two_turns"](names["agent"])) == "Your name is Alice."


def test_every_dependency_has_its_reason() -> None:
    """CONTRIBUTING.md names every dependency of pyproject.toml."""
    told = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r'^  "([a-z-]+)[>=\[]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(named) > 10
    assert [name for name in named if name not in told] == []


def test_seed_rows_name_tests() -> None:
    """docs/seed.md names a test in every row, and every test of the requested forms is named."""
    table = (ROOT / "docs" / "seed.md").read_text().split("## In code")[0]
    named = set(re.findall(r"`(test_\w+)` \|$", table, re.MULTILINE))
    written = (ROOT / "tests" / "acceptance" / "test_seed.py").read_text()
    assert named == set(re.findall(r"def (test_\w+)", written))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is a file or folder of the project, and a heading of that page."""
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    assert [link for link in links if not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    if not heading or not target.is_file():
        return target.exists() and not heading
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
    return heading in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_a_site_is_whole() -> None:
    """Every page is in the navigation, and a page of the site links to nothing outside of it."""
    told = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    docs = ROOT / "docs"
    assert told == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    for page in docs.rglob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).resolve().is_relative_to(docs), (page.name, link)


def test_pictures_are_current(tmp_path: Path) -> None:
    """The pictures of docs/concepts.md are those that docs/diagrams/draw.py draws."""
    folder = ROOT / "docs" / "diagrams"
    drawn: dict[str, Any] = runpy.run_path(str(folder / "draw.py"))
    drawn["write"](tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        file.name for file in folder.glob("*.svg")
    }
    for file in tmp_path.iterdir():
        assert file.read_text() == (folder / file.name).read_text(), "run docs/diagrams/draw.py"


def test_every_example_is_shown() -> None:
    """docs/examples.md has the text of every example."""
    shown = set(re.findall(r'--8<-- "examples/(\w+)\.py"', (ROOT / "docs/examples.md").read_text()))
    assert shown == {file.stem for file in (ROOT / "examples").glob("*.py")}, "docs/examples.md"
