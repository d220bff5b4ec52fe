"""Managing conversations: the methods that every memory with turns has, over a store's primitives.

Everything a caller can get wrong is caught here. What rewrites a session holds it meanwhile, like
a turn; what only reads, labels or deletes does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_middleware.stores.managing.copying import Copying
from session_middleware.stores.managing.looking import Looking
from session_middleware.stores.managing.removing import Removing

if TYPE_CHECKING:
    from session_middleware.stores.scoped import ScopedMemory


class ManagedMemory(Looking, Removing, Copying):
    """All methods that manage conversations."""

    def scoped(self, tenant: str) -> ScopedMemory:
        """Return a memory that sees only the sessions of one tenant, in every method.

        Its sessions are stored under ``tenant`` + ":" + id. Scopes nest.

        Raises:
            InvalidOption: the tenant is blank.
        """
        from session_middleware.stores.scoped import ScopedMemory

        return ScopedMemory(self, tenant)
