"""A test suite for anybody's memory: subclass ``MemoryConformance``, override its hooks, run it.

pytest runs the subclass as it is; ``check`` runs it without a test runner. Every test is a plain
method that runs its own event loop, on a memory of its own, by the public contracts only.

A test that needs what the memory does not declare in ``capabilities``, or a hook that the
subclass does not override, is skipped with that reason: ``pytest -rs`` prints the reasons, and so
does the report of ``check``.

Example:
    class TestMyMemory(MemoryConformance):
        def make_memory(self) -> SessionMemory:
            return MyMemory()

    print(check(TestMyMemory))
"""

from session_middleware.conformance.report import Report, check
from session_middleware.conformance.suite import MemoryConformance

__all__ = ["MemoryConformance", "Report", "check"]
