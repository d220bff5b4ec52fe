"""The reference has everything: a name that is missing there fails here, and is told where it goes.

What there is comes from the code: ``__all__``, the fields of options, the signatures of memories,
the commands of the command line, ``telemetry/names.py``, the strings of the sources.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

import pytest_session_middleware
import session_middleware
from session_middleware import errors
from session_middleware.cli.commands import group
from session_middleware.options import ROWS
from session_middleware.stores import protocol
from session_middleware.stores.managed_store import ManagedStore
from session_middleware.stores.protocol import TurnStore
from session_middleware.telemetry import Telemetry, names
from tests.support import ROOT

DOCS = ROOT / "docs"
SOURCES = Path(session_middleware.__file__).parent

PUBLIC_MODULES = [
    "session_middleware.telemetry",
    "session_middleware.conformance",
    "session_middleware.testing",
]
INTERNAL = {"REFUSALS", "Operation", "Said", "TelemetrySettings", "TurnTelemetry"}
"""Names that a public module hands to the package itself."""

MEMORIES = {
    "SQLiteSessionMemory": "sqlite.md",
    "PostgresSessionMemory": "postgres.md",
    "RedisSessionMemory": "redis.md",
}
"""The page with the options of each memory."""


def page(name: str) -> str:
    return (DOCS / name).read_text()


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables of a text: the name in the first cell, and the other cells."""
    found = re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE)
    return {
        name: re.split(r" (?<!\\)\| ", cells) for first, cells in found for name in _names(first)
    }


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def missing(wanted: Any, there: Any, where: str) -> None:
    left = sorted(set(wanted) - set(there))
    assert left == [], f"add these to {where}: {', '.join(left)}"


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next of the same level."""
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"there is no section {heading!r}"
    return found[1]


# --- names -----------------------------------------------------------------------------------


def directives() -> set[str]:
    """The objects whose docstrings the reference shows."""
    text = "".join(file.read_text() for file in (DOCS / "reference").glob("*.md"))
    return set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


def test_every_public_name() -> None:
    """Every name that the package exports has its docstring in the reference."""
    exported = {*session_middleware.__all__, *session_middleware._ON_DEMAND}
    by_class = set(errors.__all__)  # the page of errors shows their module
    shown = {name.rpartition(".")[2] for name in directives()}
    missing(exported - by_class, shown, "docs/reference/*.md, as '::: session_middleware.NAME'")
    assert "session_middleware.errors" in directives()


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_name_of_the_public_modules(module: str) -> None:
    """So has every name of the modules that are public besides."""
    shown = {name.rpartition(".")[2] for name in directives()}
    exported = set(import_module(module).__all__) - INTERNAL
    missing(exported, shown, f"docs/reference/*.md, as '::: {module}.NAME'")


def test_every_directive_names_something() -> None:
    """No docstring is asked for that is not there."""
    for name in directives():
        module, _, rest = name.rpartition(".")
        try:
            found: Any = import_module(name)
        except ImportError:
            found = getattr(import_module(module), rest)
        assert inspect.getdoc(found), name


FOR_STORES = {
    *("append_turn", "replace_history", "forget_session"),
    *("copies", "put_session", "import_as", "prune_prefix", "chosen", "held", "let_go"),
}
"""Methods of a memory that other parts of the package call, beside those of the protocols."""


def test_every_method_of_a_memory() -> None:
    """The tables of docs/reference/memories.md have every method that a user calls."""
    text = page("reference/memories.md")
    called = set(re.findall(r"^\| `(?:await |async for line in )?memory\.(\w+)\(", text, re.M))
    for_stores = {name for name in [*vars(TurnStore), *vars(ManagedStore)] if name[0] != "_"}
    for_stores = (for_stores - {"turns", "release", "pop_item"}) | FOR_STORES
    for name in ("InMemorySessionMemory", *MEMORIES):
        memory = getattr(session_middleware, name)
        methods = {
            each
            for each, value in inspect.getmembers(memory, callable)
            if not each.startswith("_") and each not in for_stores
        }
        missing(methods - {"stats"}, called, f"the tables of docs/reference/memories.md ({name})")


def test_every_capability() -> None:
    """docs/reference/memories.md shows every capability that a memory may declare."""
    text = page("reference/memories.md")
    (shown,) = re.findall(
        r"^::: session_middleware.stores.protocol\n.*?members: \[(.*?)\]", text, re.M | re.S
    )
    values = vars(protocol).items()
    capabilities = {name for name, value in values if name.isupper() and isinstance(value, str)}
    missing(capabilities, shown.split(", "), "docs/reference/memories.md")


def test_exceptions_are_exceptions() -> None:
    """No name is in a list of exceptions above that need not be there."""
    telemetry = import_module("session_middleware.telemetry")
    assert set(telemetry.__all__) >= INTERNAL


# --- options and errors ----------------------------------------------------------------------


def shown_default(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def check_defaults(defaults: dict[str, Any], text: str, where: str) -> None:
    table = rows(text)
    missing(defaults, table, where)
    for name, value in defaults.items():
        told = table[name][0]
        assert told == f"`{shown_default(value)}`", f"{where}: the default of {name} is {value!r}"


def test_every_option_with_its_default() -> None:
    """docs/reference/options.md has a row for every option, with its default, and no other."""
    text = page("reference/options.md")
    table = text.split("\n## ")[0]
    signature = inspect.signature(session_middleware.with_session_memory)
    defaults: dict[str, Any] = {"memory": signature.parameters["memory"].default}
    for name, row in ROWS.items():
        made = row.default is dataclasses.MISSING  # telemetry: None becomes Telemetry()
        defaults[name] = None if made else row.default
    check_defaults(defaults, table, "docs/reference/options.md")
    assert set(rows(table)) >= set(defaults)
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(defaults)


@pytest.mark.parametrize("form", ["with_session_memory", "session_scope", "install", "installed"])
def test_every_option_of_one_form(form: str) -> None:
    """The options that one form alone has are told with their default, too."""
    text = section(page("reference/options.md"), "Of one form only")
    parameters = inspect.signature(getattr(session_middleware, form)).parameters.values()
    own = {
        one.name: one.default
        for one in parameters
        if one.kind is one.KEYWORD_ONLY and one.name not in ("memory", *ROWS)
    }
    check_defaults(own, text, "docs/reference/options.md, 'Of one form only'")


def test_every_setting_of_telemetry() -> None:
    """So are the entries of telemetry=."""
    text = section(page("reference/options.md"), "Telemetry")
    defaults = {one.name: one.default for one in dataclasses.fields(Telemetry)}
    check_defaults(defaults, text, "docs/reference/options.md, 'Telemetry'")


@pytest.mark.parametrize(("memory", "name"), MEMORIES.items())
def test_every_option_of_a_memory(memory: str, name: str) -> None:
    """The page of each memory has its options with their defaults."""
    table = rows(page(name))
    for one in inspect.signature(getattr(session_middleware, memory)).parameters.values():
        if one.name == "url":
            continue
        missing([one.name], table, f"docs/{name}")
        told = table[one.name][0].strip("`").split(" ")[0].strip('"').lower()
        default = {None: "none"}.get(one.default, one.default)
        shown = f"{default:g}" if isinstance(default, float) else str(default).lower()
        assert told == shown, f"docs/{name}: the default of {one.name} is {one.default!r}"


def test_every_error_with_what_to_do() -> None:
    """docs/reference/errors.md has a row for every error: when it is raised, and what to do."""
    table = rows(page("reference/errors.md"))
    missing(set(errors.__all__) - {"SessionMemoryError"}, table, "docs/reference/errors.md")
    for name in set(errors.__all__) - {"SessionMemoryError"}:
        assert len(table[name]) == 2, name


def test_every_message_that_is_explained() -> None:
    """A message in docs/troubleshooting.md is one that the code has."""
    patterns = [_pattern(text) for text in _texts()]
    for message in rows(page("troubleshooting.md")):
        if "…" not in message and " " not in message:
            continue  # the name of an error or an event
        if message.startswith(("Runner.run() got", "telemetry=")) or " " not in message:
            continue  # Python's own; an option
        parts = [part for part in message.split("…") if len(part.strip()) > 3]
        assert any(all(part in text for part in parts) for text in patterns), message


def _texts() -> Iterator[ast.expr]:
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Constant, ast.JoinedStr)):
                yield node


def _pattern(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


# --- commands, telemetry, environment --------------------------------------------------------


def commands() -> dict[str, set[str]]:
    """The options of every command of the command line; "": those that come before them."""
    context = click.Context(group)
    every = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in {"": group, **every}.items()
    }


def test_every_command_and_its_options() -> None:
    """docs/reference/commands.md has every command, and in its section every option."""
    text = page("reference/commands.md")
    told = {name.split()[1] for name in rows(text) if name.startswith("session-middleware ")}
    every = commands()
    shared = every.pop("")
    missing(every, told, "the table of docs/reference/commands.md")
    for name, options in {"For every command": shared, **every}.items():
        options = {option for option in options if option.startswith("--")}
        options -= {"--help", "--version", *(shared if name in every else ())}
        if options:
            there = {option.split()[0] for option in rows(section(text, name))}
            missing(options, there, f"docs/reference/commands.md, {name!r}")


NOT_EMITTED = {"SCOPE", "DISTRIBUTION", "OTHER_ERROR", "OWN_PREFIX", "USAGE_PREFIX"}
"""Constants of telemetry/names.py that are no name of a span, attribute, metric or event."""


def test_every_span_attribute_metric_and_event() -> None:
    """docs/tracing.md names everything that is emitted."""
    text = page("tracing.md")
    told = set(re.findall(r"[\w.]+", text))
    emitted = {}
    for constant, value in vars(names).items():
        if constant.isupper() and isinstance(value, str) and constant not in NOT_EMITTED:
            emitted[value] = constant
    for keys in names.USAGE_KEYS.values():
        emitted |= dict.fromkeys(keys, "USAGE_KEYS")
    left = {name for name in emitted if not ({name, _short(name)} & told)}
    missing(left, set(), "docs/tracing.md")


def _short(name: str) -> str:
    """An attribute as the tables have it, without our prefix."""
    return name.removeprefix("session_middleware.").removeprefix("memory.write")


def test_every_level_of_an_event() -> None:
    """The table of log events has each event at its level."""
    table = section(page("tracing.md"), "Log events")
    for event, level in names.LEVELS.items():
        row = re.search(rf"^\| {level} \| (.+) \|$", table, re.MULTILINE)
        assert row is not None, level
        assert f"`{event}`" in row[1], f"docs/tracing.md, Log events: {event} is at {level}"


def test_every_environment_variable() -> None:
    """docs/reference/environment.md has every variable that the package reads, and no other."""
    read = set()
    for file in (*SOURCES.rglob("*.py"), Path(pytest_session_middleware.__file__)):
        text = file.read_text()
        read |= set(re.findall(r"environ(?:\.get\(|\[)\s*\"(\w+)\"", text))
        assert len(re.findall(r"environ\b", text)) == text.count("environ.get") + text.count(
            "environ["
        ), f"{file}: say which variables it reads, by name"
    read.add(names.CAPTURE_CONTENT_VARIABLE)
    told = set(rows(page("reference/environment.md")))
    missing(read, told, "docs/reference/environment.md")
    assert {name for name in told if name.isupper() and "_" in name} - read <= {
        "SPAN_ONLY",
        "EVENT_ONLY",
    }
