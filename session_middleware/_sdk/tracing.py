"""A run's session in the SDK's own traces.

Nothing here knows of OpenTelemetry, stores or turns.
"""

from __future__ import annotations

from typing import Any

from agents import custom_span as sdk_span
from agents import get_current_trace as current_trace

from session_middleware._sdk.call import RunCall, change_settings, setting


def trace_here() -> tuple[str, str | None] | None:
    """``(trace id, group id)`` of the SDK trace that is active here."""
    trace = current_trace()
    exported = trace.export() if trace is not None else None
    if not exported:
        return None
    return str(exported.get("id")), exported.get("group_id")


def correlate(call: RunCall, metadata: dict[str, str]) -> tuple[Any, str | None]:
    """Tie a run that is about to be called to its session in the SDK's traces.

    No trace active and no group id given: the session id becomes the group id, and the trace's
    metadata has it. A group id of the user's stays. Inside a trace that is active already, which
    must be neither nested nor changed, a span carries the session id. Where ``metadata`` has no
    session id, it is not to be shown, and none of this happens.

    Returns:
        That span, started and current, to be finished when the run is over (None without an
        outer trace), and the outer trace's group id where it is another than the session's.
    """
    session_id = metadata.get("session_id")
    outer = trace_here()
    if outer is not None and session_id is None:
        return None, None
    if outer is not None:
        span: Any = sdk_span("session", data=dict(metadata))
        span.start(mark_as_current=True)
        return span, outer[1] if outer[1] != session_id else None
    if not call.resumes:  # a resumed run goes on in its own trace, unchanged
        change_settings(
            call,
            group_id=setting(call, "group_id") or session_id,
            trace_metadata={**metadata, **(setting(call, "trace_metadata") or {})},
        )
    return None, None
