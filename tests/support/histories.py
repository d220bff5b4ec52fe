"""Items, and hypothesis strategies for the histories made of them: good ones and arbitrary ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from session_middleware.pairs import CALL_OUTPUTS

Item = dict[str, Any]


def user(text: str = "question") -> Item:
    return {"role": "user", "content": text}


def assistant(text: str = "answer", **more: Any) -> Item:
    return {"type": "message", "role": "assistant", "content": text, **more}


def reasoning(item_id: str = "rs_1") -> Item:
    return {"type": "reasoning", "id": item_id, "summary": []}


def call(call_id: Any, name: str = "f", **more: Any) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}", **more}


def output(call_id: str, text: str = "done", **more: Any) -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": text, **more}


def search(item_id: str) -> Item:
    return {"type": "web_search_call", "id": item_id, "status": "completed"}


def program(call_id: str) -> Item:
    return {"type": "program", "id": f"id_{call_id}", "call_id": call_id, "code": "f()"}


def program_output(call_id: str) -> Item:
    return {"type": "program_output", "id": f"out_{call_id}", "call_id": call_id, "result": ""}


def by(call_id: str) -> Item:
    return {"caller": {"type": "program", "caller_id": call_id}}


# --- arbitrary histories -------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "a_1", "", "__fake_id__", "x" * 70])
CALLERS = st.sampled_from([{}, {}, {}, {"caller": {"type": "direct"}}, by("a"), by("b")])


def messages() -> st.SearchStrategy[Item]:
    roles = st.sampled_from(["user", "assistant", "system", "developer"])
    return st.builds(
        lambda role, text, more: {"role": role, "content": text, **more},
        roles,
        st.text(max_size=4),
        st.sampled_from([{}, {"type": "message"}, {"type": "message", "id": "msg_1"}]),
    )


@st.composite
def tool_items(draw: st.DrawFn) -> Item:
    call_type, output_type = draw(st.sampled_from(sorted(CALL_OUTPUTS.items())))
    item: Item = {"type": draw(st.sampled_from([call_type, output_type]))}
    item["call_id"] = draw(IDS | st.none() if call_type == "tool_search_call" else IDS)
    if draw(st.booleans()):
        item["id"] = draw(IDS)
    if call_type != "program":
        item |= draw(CALLERS)
    if item["type"] == output_type:
        item["output"] = draw(st.text(max_size=2))
    return item


def hosted_items() -> st.SearchStrategy[Item]:
    kinds = ["web_search_call", "mcp_call", "mcp_list_tools", "compaction", "brand_new_call"]
    return st.builds(
        lambda kind, item_id, caller: {"type": kind, "id": item_id, **caller},
        st.sampled_from(kinds),
        IDS,
        CALLERS,
    )


def approvals() -> st.SearchStrategy[Item]:
    return st.one_of(
        st.builds(lambda i: {"type": "mcp_approval_request", "id": i, "name": "f"}, IDS),
        st.builds(
            lambda i: {"type": "mcp_approval_response", "approval_request_id": i, "approve": True},
            IDS,
        ),
    )


def items() -> st.SearchStrategy[Item]:
    """Items of every type there is, whose few ids repeat."""
    return st.one_of(
        messages(),
        tool_items(),
        tool_items(),
        st.builds(reasoning, IDS),
        hosted_items(),
        approvals(),
    )


JUNK = st.one_of(
    st.sampled_from([None, 7, "text", [], ["type"], {}, {"id": "a"}, {"type": None, "id": "a"}]),
    st.sampled_from(
        [
            {"type": ["function_call"], "call_id": "a"},
            {"type": {}, "id": "a"},
            {"role": ["user"], "content": "x"},
            {"type": "function_call", "call_id": None},
            {"type": "function_call_output", "call_id": ["a"]},
            {"type": "program", "call_id": {}, "id": []},
            {"type": "reasoning", "id": 5, "caller": {"type": "program", "caller_id": []}},
            {"type": "reasoning", "id": "c", "caller": {"type": "program", "caller_id": ""}},
            {"type": "function_call", "call_id": "\ud800" * 70},
        ]
    ),
)


@st.composite
def good_histories(draw: st.DrawFn) -> list[Item]:
    """Turns as the SDK stores them: reasoning, parallel calls of every type, hosted calls, text."""
    history: list[Item] = []
    number = 0
    for _ in range(draw(st.integers(0, 4))):
        history += [user()] * draw(st.integers(1, 2))
        for _ in range(draw(st.integers(0, 2))):
            if draw(st.booleans()):
                number += 1
                history.append(reasoning(f"rs_{number}"))
            pairs = draw(
                st.lists(st.sampled_from(sorted(CALL_OUTPUTS.items())), min_size=1, max_size=3)
            )
            ids = [f"call_{(number := number + 1)}" for _ in pairs]
            history += [
                {"type": kind, "call_id": i} for (kind, _), i in zip(pairs, ids, strict=True)
            ]
            if draw(st.booleans()):
                history.append(assistant("meanwhile"))
            history += [
                {"type": kind, "call_id": i} for (_, kind), i in zip(pairs, ids, strict=True)
            ]
        if draw(st.booleans()):
            history += [reasoning(f"rs_w{number}_{len(history)}"), search(f"ws_{len(history)}")]
        history.append(assistant(id="always-the-same"))
    if draw(st.booleans()):  # a turn that waits for an approval
        history += [user(), reasoning("rs_last"), call("pending")]
    return history


@st.composite
def almost_good_histories(draw: st.DrawFn) -> list[Any]:
    """Good histories that one item was taken from, put twice into, or put elsewhere in."""
    history: list[Any] = draw(good_histories().filter(bool))
    item = draw(st.sampled_from(history) | items() | JUNK)
    if draw(st.booleans()):
        del history[draw(st.integers(0, len(history) - 1))]
    if draw(st.booleans()):
        history.insert(draw(st.integers(0, len(history))), item)
    return history


def texts(history: list[Any]) -> list[Any]:
    """The messages of a history, whoever wrote them."""
    return [
        (item["role"], item["content"])
        for item in history
        if isinstance(item, dict) and "role" in item and item.get("type") in (None, "message")
    ]


ARBITRARY = st.lists(items() | items() | JUNK, max_size=14)
