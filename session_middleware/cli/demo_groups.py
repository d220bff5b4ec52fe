"""What a tracing tool would receive of the demo's runs: the group of each trace."""

from __future__ import annotations

from typing import Any

from agents.tracing import TracingProcessor


class GroupIds(TracingProcessor):
    """Keeps the group id of the newest SDK trace."""

    newest: str | None = None

    def on_trace_start(self, trace: Any) -> None:
        """Note the trace's group."""
        self.newest = (trace.export() or {}).get("group_id")

    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_start(self, span: Any) -> None: ...
    def on_span_end(self, span: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...
