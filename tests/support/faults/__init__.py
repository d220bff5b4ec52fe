"""Faults that nothing but the operating system can produce, for processes that tests start.

``Faults`` starts a process whose calls on one file, and on what SQLite keeps beside it, fail, are
cut short or kill it, and whose wall clock can be set. ``Disk`` tells what a power failure at any
moment would have left of those files. Both know nothing of this package.
"""

from tests.support.faults.disk import SURVIVES, Disk
from tests.support.faults.shim import Call, Faults, Outcome, needs_compiler

__all__ = ["SURVIVES", "Call", "Disk", "Faults", "Outcome", "needs_compiler"]
