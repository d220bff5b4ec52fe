"""The documentation is true: its code runs, its tables are complete, its links lead somewhere.

A ``python`` block is executed, top-level ``await`` included; a ``text`` block after it is what it
printed; a ``sql`` block is executed on the page's chat.db, and ``-- error:`` in its first line
says how SQLite must refuse it. The blocks of a page share their names, as its reader does.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import MultiProvider
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

import session_middleware
from session_middleware import errors
from session_middleware._demo_model import LocalModel
from session_middleware._options import TurnOptions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


SYBIL = Sybil(
    [
        CodeBlockParser("python", run_python),
        CodeBlockParser("text", compare_text),
        CodeBlockParser("sql", run_sql),
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page: Path) -> None:
    """Every block of the page does what the page says, in the order of the page."""
    for example in SYBIL.parse(page).examples():
        example.evaluate()


def test_readme_function_remembers() -> None:
    """The function among the ten lines that matter returns what its comment says."""
    document = SYBIL.parse(ROOT / "README.md")
    for example in document.examples():
        example.evaluate()
    names: dict[str, Any] = document.namespace
    assert asyncio.run(names["two_turns"](names["agent"])) == "Your name is Alice."


def test_every_error_is_documented() -> None:
    """README.md has a row for every error."""
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert set(errors.__all__) - {"SessionMemoryError"} <= documented


def test_every_option_is_documented() -> None:
    """README.md has a row for every option, and for no other."""
    _, options = (ROOT / "README.md").read_text().split("## Options")
    table, _ = options.split("Per call:")
    documented = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert documented == {"memory", *TurnOptions.__annotations__}


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
    """Every relative link of the page is a file or folder of the project."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
