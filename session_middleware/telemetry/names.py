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
WAIT_SPAN: Final = "wait_for_session"
ACQUIRE_SESSION: Final = "acquire_session"
END_TURN: Final = "end_turn"
SEARCH_MEMORY: Final = "search_memory"
CREATE_MEMORY: Final = "create_memory"
UPDATE_MEMORY: Final = "update_memory"
DELETE_MEMORY: Final = "delete_memory"
CHAT: Final = "chat"
"""A model call; the model's name follows."""
UPSERT_MEMORY: Final = "upsert_memory"

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
OPENINFERENCE_RETRIEVER: Final = "RETRIEVER"
OPENINFERENCE_LLM: Final = "LLM"
OPENINFERENCE_MODEL: Final = "llm.model_name"
REQUEST_MODEL: Final = "gen_ai.request.model"

USAGE_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "input_tokens": ("gen_ai.usage.input_tokens", "llm.token_count.prompt"),
    "output_tokens": ("gen_ai.usage.output_tokens", "llm.token_count.completion"),
    "total_tokens": ("llm.token_count.total",),
    "cached_input_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "llm.token_count.prompt_details.cache_read",
    ),
    "reasoning_output_tokens": (
        "gen_ai.usage.reasoning.output_tokens",
        "llm.token_count.completion_details.reasoning",
    ),
}
"""The keys that tools read, by the name that a turn's record gives the count."""

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
METHOD: Final = "session_middleware.method"
TURN: Final = "session_middleware.turn"
OUTCOME: Final = "session_middleware.outcome"
OTHER_TURN: Final = "session_middleware.other_turn"
STATE: Final = "session_middleware.state"
TOOK_OVER: Final = "session_middleware.took_over"
LOCK_WAIT_SECONDS: Final = "session_middleware.lock.wait_seconds"
HISTORY_ITEM_COUNT: Final = "session_middleware.history.item_count"
HISTORY_SIZE_BYTES: Final = "session_middleware.history.size_bytes"
HISTORY_DIGEST: Final = "session_middleware.history.digest"
HISTORY_TRIMMED_COUNT: Final = "session_middleware.history.trimmed_count"
HISTORY_REPAIRS_DONE: Final = "session_middleware.history.repairs"
REPAIR_KIND: Final = "session_middleware.repair.kind"
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
LOCK_TAKEOVERS: Final = "session_middleware.lock.takeovers"
HISTORY_ITEMS: Final = "session_middleware.history.items"
HISTORY_REPAIRS: Final = "session_middleware.history.repairs"
HISTORY_TRIMS: Final = "session_middleware.history.trims"
CALLS_UNKNOWN: Final = "session_middleware.calls.unknown"

# --- log events ------------------------------------------------------------------------------

TURN_STARTED: Final = "turn_started"
HISTORY_LOADED: Final = "history_loaded"
ITEMS_SAVED: Final = "items_saved"
TURN_COMPLETED: Final = "turn_completed"
HISTORY_TRIMMED: Final = "history_trimmed"
LOCK_CONTENDED: Final = "lock_contended"
SESSION_TAKEN_OVER: Final = "session_taken_over"
CALLS_ARE_UNKNOWN: Final = "calls_unknown"
HISTORY_REPAIRED: Final = "history_repaired"
NO_RUN_INTERCEPTED: Final = "no_run_intercepted"
HISTORY_REPEATED: Final = "history_repeated"
CONTEXT_OUTLIVED_TURN: Final = "context_outlived_turn"
OTHER_SESSION_GIVEN: Final = "other_session_given"
OUTER_TRACE_GROUP_MISMATCH: Final = "outer_trace_group_mismatch"
LOAD_FAILED: Final = "load_failed"
SAVE_FAILED: Final = "save_failed"
SESSION_ID_UNMAPPED: Final = "session_id_unmapped"
TELEMETRY_FAILED: Final = "telemetry_failed"

LEVELS: Final[dict[str, Level]] = {
    TURN_COMPLETED: "info",  # a fault: at warning
    LOCK_CONTENDED: "warning",  # behind a turn of this process: at debug
    SESSION_TAKEN_OVER: "warning",
    CALLS_ARE_UNKNOWN: "warning",
    HISTORY_REPAIRED: "warning",
    NO_RUN_INTERCEPTED: "warning",
    OTHER_SESSION_GIVEN: "warning",
    HISTORY_REPEATED: "warning",
    CONTEXT_OUTLIVED_TURN: "warning",
    SESSION_ID_UNMAPPED: "warning",
    LOAD_FAILED: "error",
    SAVE_FAILED: "error",
}
"""The level of each log event that is not logged at debug."""
