"""How a session and its turns read: what was said, calls beside their outputs, and the outcomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from session_middleware.cli.output import Output
from session_middleware.cli.text import shown_lines
from session_middleware.pairs import calls_answered
from session_middleware.stores.managed_store import SessionInfo
from session_middleware.stores.records import CallRecord, TurnRecord
from session_middleware.words import ago, counted, duration, moment, size

STATE_STYLES = {
    "completed": "good",
    "running": "attention",
    "awaiting_approval": "attention",
    "failed": "bad",
    "abandoned": "bad",
}
_WIDEST = 2_000  # characters of one line of arguments or of an item that is no message
_LABEL = 10  # characters


def tell_session(output: Output, info: SessionInfo) -> None:
    """What is known of a session, above its turns."""
    output.write(info.session_id, "heading")
    if info.title:
        output.write(f"  {info.title}")
    output.write(
        f"  {counted(info.turns, 'turn')}, {counted(info.items, 'item')}, {size(info.bytes)}; "
        f"created {moment(info.created_at)}, used {ago(info.updated_at)}",
        "dim",
    )
    if info.metadata:
        output.write(f"  metadata {json.dumps(info.metadata, ensure_ascii=False)}", "dim")


def tell_turn(output: Output, record: TurnRecord, *, with_session: bool = False) -> None:
    """A turn: its outcome, its traces, and what was said in it."""
    output.value(record.to_dict())
    if output.as_json:
        return
    output.write()
    session = f"{record.session_id}  " if with_session else ""
    output.write(
        f"{session}turn {record.turn}  {_outcome(record)}", STATE_STYLES.get(record.state, "")
    )
    for line in _traces(record):
        output.write(f"  {line}", "dim")
    for label, text, style in _lines(record):
        first, *more = shown_lines(text)
        output.write(f"  {label:<{_LABEL}} {first}", style)
        for line in more:
            output.write(f"  {'':<{_LABEL}} {line}", style)


def _outcome(record: TurnRecord) -> str:
    parts: list[str] = [record.state]
    if record.error_type:
        parts.append(record.error_type)
    if record.ended_at is not None:
        parts.append(duration((record.ended_at - record.started_at).total_seconds()))
    parts.append(moment(record.started_at))
    if record.agent:
        parts.append(f"agent {record.agent}")
    if record.runs > 1:
        parts.append(counted(record.runs, "run"))
    return "  ".join(parts)


def _traces(record: TurnRecord) -> list[str]:
    lines = []
    traces = [*record.otel_trace_ids, *record.sdk_trace_ids]
    if traces:
        lines.append(f"trace {', '.join(traces)}")
    if record.idempotency_key:
        lines.append(f"idempotency key {record.idempotency_key}")
    if record.waited and record.waited >= 0.1:
        lines.append(f"waited {duration(record.waited)} for its session")
    usage = record.usage or {}
    if "input_tokens" in usage or "output_tokens" in usage:
        told = f"{usage.get('input_tokens', 0):,} in, {usage.get('output_tokens', 0):,} out"
        lines.append(f"tokens {told}")
    return lines


# --- items -----------------------------------------------------------------------------------


def _lines(record: TurnRecord) -> list[tuple[str, str, str]]:
    """A label, a text and a style for each thing that was said; an output is beside its call."""
    items = list(enumerate(record.items))
    answers = calls_answered(items)
    outputs = {answer.call: at for at, answer in answers.items()}
    states = {call.call_id: call for call in record.calls}
    lines: list[tuple[str, str, str]] = []
    stored: set[str] = set()
    for at, item in items:
        if at in answers:
            continue  # told beside its call
        call_id = str(item.get("call_id") or item.get("id") or "")
        lines.append(_line(item))
        if at in outputs:
            stored.add(call_id)
            lines.append(_output(record.items[outputs[at]], states.get(call_id)))
        elif _is_call(item):
            stored.add(call_id)
            lines.append(_no_output(record, states.get(call_id)))
    for call in record.calls:
        if call.call_id not in stored:
            lines.append(("call", f"{call.name} ({call.call_id})", ""))
            lines.append(_no_output(record, call))
    return lines


def _is_call(item: Mapping[str, Any]) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and (kind.endswith("_call") or kind == "mcp_approval_request")


def _line(item: Mapping[str, Any]) -> tuple[str, str, str]:
    kind = item.get("type") or "message"
    if kind == "message" and "role" in item:
        return str(item["role"]), _words(item.get("content")), ""
    if kind == "function_call":
        return "call", _cut(f"{item.get('name')}({item.get('arguments', '')})"), ""
    if kind == "reasoning":
        return "reasoning", _words(item.get("summary")) or "-", "dim"
    rest = {name: value for name, value in item.items() if name != "type"}
    return str(kind), _cut(json.dumps(rest, ensure_ascii=False)), ""


def _output(item: Mapping[str, Any], call: CallRecord | None) -> tuple[str, str, str]:
    value = item.get("output")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    state = f"[{_call_state(call)}] " if call is not None else ""
    return "output", f"{state}{_cut(text)}", "dim"


def _no_output(record: TurnRecord, call: CallRecord | None) -> tuple[str, str, str]:
    if record.state == "awaiting_approval" and call is None:
        return "", "waits for approval", "attention"
    if call is None:
        return "", "no output is stored", "dim"
    style = "bad" if call.state in ("unknown", "begun", "failed") else "dim"
    return "", f"[{_call_state(call)}] no output is stored", style


def _call_state(call: CallRecord) -> str:
    attempt = f", attempt {call.attempt}" if call.attempt > 1 else ""
    if call.ended_at is None:
        return f"{call.state}{attempt}"
    return f"{call.state} in {duration((call.ended_at - call.started_at).total_seconds())}{attempt}"


def _words(content: Any) -> str:
    """The words of a message; what is no text is told by its type."""
    if isinstance(content, str):
        return content
    parts: Sequence[Any] = content if isinstance(content, list) else []
    return " ".join(
        part["text"] if isinstance(part.get("text"), str) else f"[{part.get('type', 'part')}]"
        for part in parts
        if isinstance(part, dict)
    )


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}… ({len(text):,} characters)"
