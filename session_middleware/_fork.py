"""What a forked child begins anew, in one list and one order.

A child inherits the state of its parent without the parent's threads: a lock that another thread
held is never released there, a loop has no thread, a connection belongs to the parent. Each
module with such state names a step here. Nothing in this module knows what the state is.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

T = TypeVar("T")


class Step(IntEnum):
    """The order in which a child begins anew; a step may rely on those before it.

    A module that pauses something before a fork is paused in the opposite order.
    """

    BACKGROUND_LOOP = 1
    CONNECTIONS = 2
    LEASES = 3
    IN_MEMORY_SESSIONS = 4
    FLAT_SESSIONS = 5
    SHARED_MEMORIES = 6
    SESSION_QUEUES = 7


@dataclass(frozen=True, eq=False, slots=True)
class _Handlers:
    in_child: Callable[[], None]
    before: Callable[[], None] | None
    in_parent: Callable[[], None] | None


_steps: dict[Step, list[_Handlers]] = {}


def at_fork(
    step: Step,
    in_child: Callable[[], None],
    *,
    before: Callable[[], None] | None = None,
    in_parent: Callable[[], None] | None = None,
) -> None:
    """Call ``in_child`` in every forked child, at its step.

    Args:
        step: the subject; several modules may have the same.
        in_child: forgets what belongs to the parent.
        before: called in the parent before the fork.
        in_parent: called in the parent after the fork.
    """
    _steps.setdefault(step, []).append(_Handlers(in_child, before, in_parent))


_inherited: list[Any] = []


def forgetting_at_fork(
    step: Step, forget: Callable[[T], None], *, keeps: Callable[[T], object] | None = None
) -> weakref.WeakSet[T]:
    """Make a set whose members ``forget`` in every forked child, at this step.

    Each object adds itself when it is made; the set keeps none of them alive.

    Args:
        step: the subject.
        forget: makes one of them as good as new.
        keeps: returns what one of them has of the parent and must not close, such as connections:
            the end of those in the child would be felt in the parent.
    """
    members: weakref.WeakSet[T] = weakref.WeakSet()

    def in_child() -> None:
        for member in list(members):
            if keeps is not None:
                _inherited.append(keeps(member))
            forget(member)

    at_fork(step, in_child)
    return members


def _before() -> None:
    for step in sorted(_steps, reverse=True):
        for handlers in reversed(_steps[step]):
            if handlers.before is not None:
                handlers.before()


def _in_parent() -> None:
    for step in sorted(_steps):
        for handlers in _steps[step]:
            if handlers.in_parent is not None:
                handlers.in_parent()


def _in_child() -> None:
    for step in sorted(_steps):
        for handlers in _steps[step]:
            handlers.in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
