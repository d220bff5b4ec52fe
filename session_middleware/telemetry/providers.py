"""What is made once for each provider, and let go with it. Knows nothing of what that is."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")


class PerProvider(Generic[Made]):
    """Weak references by identity: some providers are dataclasses, which cannot be hashed."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Any], Made]] = {}

    def get(self, provider: object) -> Made | None:
        """What was made for this provider."""
        known = self._made.get(id(provider))
        return known[1] if known is not None and known[0]() is provider else None

    def keep(self, provider: object, made: Made) -> None:
        """Keep it for as long as the provider exists."""
        key = id(provider)

        def forget(gone: weakref.ref[Any]) -> None:
            known = self._made.get(key)
            if known is not None and known[0] is gone:  # else the address has a new provider
                del self._made[key]

        self._made[key] = (weakref.ref(provider, forget), made)
