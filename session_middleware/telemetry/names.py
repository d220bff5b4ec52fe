"""Every name that is emitted: spans, attributes, metrics, log events and their levels.

Constants only. The ``gen_ai.memory.*`` keys follow the GenAI semantic conventions, whose package
of constants does not have them; whatever has no convention begins with ``session_middleware.``.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Level: TypeAlias = Literal["debug", "info", "warning", "error"]

SCOPE: Final = "session_middleware"
"""The instrumentation scope, and the name of the standard library's logger."""

DISTRIBUTION: Final = "session-middleware"

# --- spans -----------------------------------------------------------------------------------

TURN_SPAN: Final = "session_turn"
SEARCH_MEMORY: Final = "search_memory"
CREATE_MEMORY: Final = "create_memory"
UPDATE_MEMORY: Final = "update_memory"
DELETE_MEMORY: Final = "delete_memory"

# --- attributes by convention ----------------------------------------------------------------

SESSION_ID: Final = "session.id"
"""Also the key of the OpenTelemetry context value and of the baggage entry."""
CONVERSATION_ID: Final = "gen_ai.conversation.id"
OPERATION_NAME: Final = "gen_ai.operation.name"
MEMORY_STORE_ID: Final = "gen_ai.memory.store.id"
MEMORY_RECORD_COUNT: Final = "gen_ai.memory.record.count"
ERROR_TYPE: Final = "error.type"
OTHER_ERROR: Final = "_OTHER"
EXCEPTION_EVENT: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
OPENINFERENCE_SPAN_KIND: Final = "openinference.span.kind"
OPENINFERENCE_CHAIN: Final = "CHAIN"

# Content: on opt-in only.
CAPTURE_CONTENT_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
INPUT_VALUE: Final = "input.value"
OUTPUT_VALUE: Final = "output.value"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
CONTENT_EVENT: Final = "session_middleware.turn.content"

# --- attributes of our own -------------------------------------------------------------------

BACKEND: Final = "session_middleware.backend"
STREAMING: Final = "session_middleware.streaming"
TURN: Final = "session_middleware.turn"
OUTCOME: Final = "session_middleware.outcome"
HOLDER: Final = "session_middleware.holder"
LOCK_WAIT_SECONDS: Final = "session_middleware.lock.wait_seconds"
HISTORY_ITEM_COUNT: Final = "session_middleware.history.item_count"
HISTORY_SIZE_BYTES: Final = "session_middleware.history.size_bytes"
HISTORY_DIGEST: Final = "session_middleware.history.digest"
HISTORY_TRIMMED_COUNT: Final = "session_middleware.history.trimmed_count"
HISTORY_REPAIRS_DONE: Final = "session_middleware.history.repairs"
NEW_ITEM_COUNT: Final = "session_middleware.new_item.count"
SDK_TRACE_ID: Final = "session_middleware.sdk_trace_id"
SDK_GROUP_ID: Final = "session_middleware.sdk_group_id"
USAGE_PREFIX: Final = "session_middleware.usage."
OWN_PREFIX: Final = "session_middleware."

# --- events on the root span -----------------------------------------------------------------

SDK_TRACE_EVENT: Final = "sdk_trace"

# --- metrics ---------------------------------------------------------------------------------

TURN_DURATION: Final = "session_middleware.turn.duration"
TURN_ACTIVE: Final = "session_middleware.turn.active"
OPERATION_DURATION: Final = "session_middleware.memory.operation.duration"
LOCK_WAIT_DURATION: Final = "session_middleware.lock.wait.duration"
LOCK_CONFLICTS: Final = "session_middleware.lock.conflicts"
HISTORY_ITEMS: Final = "session_middleware.history.items"
HISTORY_REPAIRS: Final = "session_middleware.history.repairs"
HISTORY_TRIMS: Final = "session_middleware.history.trims"

# --- log events ------------------------------------------------------------------------------

TURN_STARTED: Final = "turn_started"
HISTORY_LOADED: Final = "history_loaded"
ITEMS_SAVED: Final = "items_saved"
TURN_COMPLETED: Final = "turn_completed"
HISTORY_TRIMMED: Final = "history_trimmed"
LOCK_CONTENDED: Final = "lock_contended"
HISTORY_REPAIRED: Final = "history_repaired"
NO_RUN_INTERCEPTED: Final = "no_run_intercepted"
OUTER_TRACE_GROUP_MISMATCH: Final = "outer_trace_group_mismatch"
LOAD_FAILED: Final = "load_failed"
SAVE_FAILED: Final = "save_failed"
SESSION_ID_UNMAPPED: Final = "session_id_unmapped"
TELEMETRY_FAILED: Final = "telemetry_failed"

LEVELS: Final[dict[str, Level]] = {
    TURN_STARTED: "debug",
    HISTORY_LOADED: "debug",
    ITEMS_SAVED: "debug",
    TURN_COMPLETED: "debug",
    OUTER_TRACE_GROUP_MISMATCH: "debug",
    TELEMETRY_FAILED: "debug",
    HISTORY_TRIMMED: "info",
    LOCK_CONTENDED: "warning",
    HISTORY_REPAIRED: "warning",
    NO_RUN_INTERCEPTED: "warning",
    SESSION_ID_UNMAPPED: "warning",
    LOAD_FAILED: "error",
    SAVE_FAILED: "error",
}
"""The level of each log event; one that is not listed is logged at debug."""
