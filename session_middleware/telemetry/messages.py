"""Items as the messages of the GenAI conventions: what was said, cut, and no binary data.

Pure functions on items. An item of a type that is not known here becomes a part with its type and
size alone. Whether anything of it may be shown is not decided here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from session_middleware.pairs import is_output, pair_id

LONGEST_TEXT: Final = 4_000
"""Characters of a text, of a call's arguments or of its output that are shown."""

MOST_MESSAGES: Final = 20
"""Messages that are shown: the newest."""

Message: TypeAlias = dict[str, Any]

_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "summary_text"})
_MODALITIES = {"input_image": "image", "input_audio": "audio", "input_file": "document"}


def messages_of(given: str | Sequence[Any]) -> list[Message]:
    """The newest messages of a run's input: a text, or a list of items."""
    if isinstance(given, str):
        return [{"role": "user", "parts": [_text(given)]}]
    return [_message(item) for item in given[-MOST_MESSAGES:]]


def answer(text: str) -> list[Message]:
    """The final output of a turn as a message."""
    return [{"role": "assistant", "parts": [_text(text)], "finish_reason": "stop"}]


def plain_text(messages: Sequence[Message]) -> str | None:
    """The texts of the newest message that has any, for tools that show one text."""
    for message in reversed(messages):
        texts = [part["content"] for part in message["parts"] if part["type"] == "text"]
        if texts:
            return "\n".join(texts)
    return None


def as_json(messages: Sequence[Message]) -> str:
    """The messages as the value of an attribute."""
    return json.dumps(messages, ensure_ascii=False, default=str)


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        return {"role": "user", "parts": [{"type": type(item).__name__}]}
    kind = item.get("type") or "message"
    if kind == "message" or "role" in item:
        return {"role": item.get("role") or "user", "parts": _parts(item.get("content"))}
    if kind == "reasoning":
        parts = [{**part, "type": "reasoning"} for part in _parts(item.get("summary"))]
        return {"role": "assistant", "parts": parts}
    if is_output(item):
        return {"role": "tool", "parts": [_response(item)]}
    if "name" in item and "call_id" in item:
        return {"role": "assistant", "parts": [_call(item)]}
    return {"role": "assistant", "parts": [_unknown(item)]}


def _call(item: Mapping[str, Any]) -> Message:
    arguments = item.get("arguments", item.get("input"))
    return {
        "type": "tool_call",
        "id": item["call_id"],
        "name": item["name"],
        "arguments": _cut(arguments if isinstance(arguments, str) else _json(arguments)),
    }


def _response(item: Mapping[str, Any]) -> Message:
    output = item.get("output")
    shown: Any = _cut(output) if isinstance(output, str) else _parts(output)
    return {"type": "tool_call_response", "id": pair_id(item), "response": shown}


def _parts(content: Any) -> list[Message]:
    if isinstance(content, str):
        return [_text(content)]
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Iterable):
        return []
    return [_part(part) for part in content]


def _part(part: Any) -> Message:
    if isinstance(part, str):
        return _text(part)
    if not isinstance(part, Mapping):
        return {"type": type(part).__name__}
    kind = part.get("type")
    text = part.get("text", part.get("refusal"))
    if kind in _TEXTS and isinstance(text, str):
        return _text(text)
    modality = _MODALITIES.get(kind) if isinstance(kind, str) else None
    return _unknown(part) if modality is None else _binary(part, modality)


def _binary(part: Mapping[str, Any], modality: str) -> Message:
    """A reference to what a part holds; of data in the part, its type and size in bytes."""
    if part.get("file_id") is not None:
        return {"type": "file", "modality": modality, "file_id": part["file_id"]}
    audio = part.get("input_audio")
    source = audio if isinstance(audio, Mapping) else part
    data = str(
        source.get("image_url")
        or source.get("file_url")
        or source.get("file_data")
        or source.get("data")
        or ""
    )
    if data.startswith(("http://", "https://")):
        return {"type": "uri", "modality": modality, "uri": _cut(data)}
    head, _, body = data.rpartition(",")
    mime_type = head.removeprefix("data:").partition(";")[0] or source.get("format")
    return {
        "type": "blob",
        "modality": modality,
        "mime_type": mime_type,
        "size": len(body.rstrip("=")) * 3 // 4,
    }


def _unknown(part: Mapping[str, Any]) -> Message:
    return {"type": str(part.get("type")), "size": len(_json(part))}


def _text(text: str) -> Message:
    return {"type": "text", "content": _cut(text)}


def _cut(text: str) -> str:
    more = len(text) - LONGEST_TEXT
    return text if more <= 0 else f"{text[:LONGEST_TEXT]}... ({more} characters more)"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
