"""The one place that touches the ``agents`` package.

What we rely on of the SDK is named here and checked when the Runner is first intercepted; a
release that changes it fails with a message that names the versions that work. Nothing here
knows of stores, turns or telemetry.
"""

from agents import RunHooks, Runner, SessionABC

from session_middleware._sdk.call import (
    RunCall,
    bind,
    drop_new_input,
    filter_model_input,
    given_context,
    given_session,
    go_gated,
    merges_input,
    new_items,
    underlying_session,
)
from session_middleware._sdk.outcome import (
    Outcome,
    find_state,
    has_ended_early,
    has_run_loop,
    model_name,
    outcome_of,
    parked_identity,
    resumed_identity,
    usage_of,
)
from session_middleware._sdk.runner import (
    RUNNER_METHODS,
    patch,
    patched,
    runner_method,
    unpatch,
    without_partials,
)
from session_middleware._sdk.tracing import correlate, trace_here

__all__ = [
    "RUNNER_METHODS",
    "Outcome",
    "RunCall",
    "RunHooks",
    "Runner",
    "SessionABC",
    "bind",
    "correlate",
    "drop_new_input",
    "filter_model_input",
    "find_state",
    "given_context",
    "given_session",
    "go_gated",
    "has_ended_early",
    "has_run_loop",
    "merges_input",
    "model_name",
    "new_items",
    "outcome_of",
    "parked_identity",
    "resumed_identity",
    "patch",
    "patched",
    "runner_method",
    "trace_here",
    "underlying_session",
    "unpatch",
    "usage_of",
    "without_partials",
]
