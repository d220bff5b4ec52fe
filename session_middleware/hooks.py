"""SessionRunHooks: the part of the middleware that the SDK calls during a run, to be composed.

What the hooks report, and to whom, is in ``_turns.reports``.
"""

from __future__ import annotations

from session_middleware._turns.reports import RunReports


class SessionRunHooks(RunReports):
    """RunHooks that report model calls, tool calls and handoffs to the turn in force.

    Runs in a session have them already. Name them yourself to compose several hooks:

    >>> from agents import RunHooks
    >>> class Mine(RunHooks): ...
    >>> hooks = SessionRunHooks(Mine(), Mine())

    Args:
        hooks: RunHooks that are called first, in this order. An error that one of them raises
            goes to the run, as without this class.
    """
