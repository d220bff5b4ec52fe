"""Items to store: ordinary ones, ones that are easily damaged, and ones that are none."""

from __future__ import annotations

from typing import Any

from session_middleware.stores.items import MAX_DEPTH
from session_middleware.stores.records import Item


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def assistant(text: str) -> Item:
    return {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "id": f"msg_{text}",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def call(name: str) -> Item:
    return {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": "{}"}


def output(name: str) -> Item:
    return {"type": "function_call_output", "call_id": f"call_{name}", "output": "done"}


def nested(depth: int) -> Item:
    """An object that is nested this deep."""
    value: Item = {}
    for _ in range(depth - 1):
        value = {"in": value}
    return value


def depth_of(value: Any) -> int:
    """How deep what ``nested`` made is nested; needs no stack."""
    depth = 1
    while value:
        value = value["in"]
        depth += 1
    return depth


AWKWARD_IDS = (
    'it\'s "quoted"; --',
    "100%_[a-z]*?",
    "{tag}}{",
    "family \N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN} \N{WHITE SMILING FACE}",
    "a/b\\c:d",
    " leading and trailing ",
    "x" * 512,
    "\N{COMBINING ACUTE ACCENT}e",
    "Ä",
    "ä",
)

AWKWARD_VALUES: tuple[Any, ...] = (
    "nul \u0000 and \u001f",
    "line \u2028 separators \u2029",
    "\N{WHITE SMILING FACE}\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}",
    "\ufeffbyte order mark",
    '{"json": "in a string"}',
    "\\u0000 \\ud800 written out",
    "",
    2**70,
    -(2**63),
    0,
    1e308,
    5e-324,
    0.1 + 0.2,
    1.0,
    -0.0,
    True,
    None,
    [],
    {},
    [[], {}, [None]],
    {"z": 1, "a": 2, "M": 3},
    {"a": 1, "A": 2, "a ": 3, "": 4},
)


def exactly(value: Any) -> str:
    """The value as text that tells 1 from 1.0 and True, and knows the order of keys."""
    return repr(value)


def faulty_items() -> list[Any]:
    """One of each kind that is no JSON object."""
    cycle: Item = {"role": "user"}
    cycle["content"] = [cycle]
    return [
        "text",
        ["list"],
        None,
        {1: "an integer key"},
        {"content": {None: "a key that is no string"}},
        {"content": float("nan")},
        {"content": [float("-inf")]},
        {"content": b"bytes"},
        {"content": {"a", "set"}},
        {"content": object()},
        cycle,
        nested(MAX_DEPTH + 1),
    ]
