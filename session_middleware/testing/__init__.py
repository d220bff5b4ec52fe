"""What tests of a service with session memory need: models, a provider, faults, assertions.

Nothing here imports pytest. The fixtures are in the module ``pytest_session_middleware``, which
pytest loads by itself, and which imports this package when a test asks for a fixture.
"""

from session_middleware.testing.assertions import (
    SessionContents,
    assert_no_session,
    assert_session,
)
from session_middleware.testing.faults import Fault, die, fail_at, kill_at, operations_of
from session_middleware.testing.leases import LeaseClock, busy_session
from session_middleware.testing.models import (
    LocalModel,
    assistant,
    call,
    calls,
    failure,
    handoff_to,
    local_agent,
    model_of,
    scripted_agent,
)
from session_middleware.testing.provider import Provider, local_provider
from session_middleware.testing.workers import Outcome, Worker, WorkerProcesses

__all__ = [
    # models, and the steps of a scripted one
    "LocalModel",
    "local_agent",
    "scripted_agent",
    "model_of",
    "assistant",
    "call",
    "calls",
    "handoff_to",
    "failure",
    # a provider on this machine
    "Provider",
    "local_provider",
    # what a session holds
    "assert_session",
    "assert_no_session",
    "SessionContents",
    # leases and faults
    "LeaseClock",
    "busy_session",
    "fail_at",
    "kill_at",
    "die",
    "Fault",
    "operations_of",
    # other processes
    "WorkerProcesses",
    "Worker",
    "Outcome",
]
