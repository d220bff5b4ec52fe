"""docs/guides/testing.md is true: its tests pass, and it names all that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pytest_session_middleware
import session_middleware
from session_middleware import testing
from tests.support import ROOT
from tests.support.programs import Programs
from tests.testing.test_plugin import run

PAGE = (ROOT / "docs" / "guides" / "testing.md").read_text()


def test_the_tests_of_the_page_pass(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    """Its blocks are one test module."""
    monkeypatch.delenv("SESSION_MIDDLEWARE_MEMORY", raising=False)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = "\n".join(blocks)
    pytester.makepyfile(test_page=module)
    tests = re.findall(r"^def (test_\w+)", module, re.MULTILINE)
    result = run(programs, pytester)
    # Two of them run twice: on each backend without a server, and over each API.
    result.assert_outcomes(passed=len(tests) + 2)
    assert not (pytester.path / "agent_sessions.db").exists()


def test_every_name_is_on_the_page() -> None:
    """Everything public, every fixture and every variable is in docs/guides/testing.md."""
    assert [name for name in testing.__all__ if name not in PAGE] == []
    source = ast.parse(Path(pytest_session_middleware.__file__).read_text())
    fixtures = [
        node.name
        for node in source.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert len(fixtures) == 10
    assert [name for name in fixtures if f"`{name}" not in PAGE] == []


def test_nothing_in_the_package_imports_pytest() -> None:
    """Somebody who installed no pytest can use it."""
    files = list(Path(session_middleware.__file__).parent.rglob("*.py"))
    assert len(files) > 100
    for file in files:
        assert not re.search(r"^\s*(import|from) _?pytest\b", file.read_text(), re.MULTILINE), file
