"""Methods that have their signature ready when they are bound.

The SDK asks for the signature of ``get_items`` before every call of any of its session's methods,
and working it out takes longer than most of these calls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


class SignatureAtHand:
    """A decorator for a method of one class."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        of_function = inspect.signature(method)
        self._signature = of_function.replace(parameters=[*of_function.parameters.values()][1:])

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        bound = functools.partial(self._method, instance)
        vars(bound)["__signature__"] = self._signature
        return bound
