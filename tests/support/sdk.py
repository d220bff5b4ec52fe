"""The SDK's own methods, as they are below whatever wraps them at the moment."""

from __future__ import annotations

import inspect
from typing import Any

from agents import Runner


def own_method(name: str) -> Any:
    """The classmethod of Runner that the SDK has defined."""
    found = inspect.getattr_static(Runner, name)
    while type(found) is not classmethod:
        found = found.__wrapped__
    return found


def bound_early(name: str) -> Any:
    """A method of Runner as somebody has it who took it before anything was wrapped."""
    return own_method(name).__get__(None, Runner)
