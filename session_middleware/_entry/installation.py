"""What ``install`` has set for the whole process, as an intercepted run reads it.

Setting it is for ``install``; this module checks nothing and wraps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from session_middleware.memory import SessionMemory
from session_middleware.options import Options


@dataclass(frozen=True)
class Installation:
    """The settings of one ``install`` call.

    Attributes:
        memory: a function from the starting agent to a memory; None: the options name it.
        options: the checked options.
        require_session_id: a run without a session id is an error.
        observe: runs that bring a ``session=`` of another kind are traced and counted.
    """

    memory: Any
    options: Options
    require_session_id: bool
    observe: bool

    def for_agent(self, agent: Any) -> Options:
        """The options of a run that starts with this agent."""
        if callable(self.memory) and not isinstance(self.memory, SessionMemory):
            return self.options.with_memory(self.memory(agent)).in_force()
        return self.options.in_force()


_current: Installation | None = None


def current_installation() -> Installation | None:
    """The installation in force in this process, or None."""
    return _current


def put_installation(installation: Installation | None) -> Installation | None:
    """Put an installation in force, or none; returns the one before."""
    global _current
    before, _current = _current, installation
    return before
