"""Runs a suite without a test runner and says what passed, was skipped and failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from unittest import SkipTest

from session_middleware.conformance.cases import Hooks


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a suite.

    Attributes:
        passed: the names of the tests that passed.
        skipped: the reason of each test that was skipped, by its name.
        failed: the error of each test that failed, by its name.
    """

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{len(self.passed)} passed, {len(self.skipped)} skipped, {len(self.failed)} failed"
        ]
        for reason, count in Counter(self.skipped.values()).most_common():
            lines.append(f"skipped {count}: {reason}")
        for name, error in self.failed.items():
            lines.append(f"failed {name}: {type(error).__name__}: {error}")
        return "\n".join(lines)


def check(suite: type[Hooks], *names: str) -> Report:
    """Run the tests of a suite, each on an instance of its own.

    Args:
        suite: a subclass of ``MemoryConformance``.
        names: the tests to run; default all.

    Must not be called inside a running event loop.
    """
    report = Report()
    for name in names or [name for name in dir(suite) if name.startswith("test_")]:
        try:
            getattr(suite(), name)()
        except SkipTest as skipped:
            report.skipped[name] = str(skipped)
        except Exception as error:
            report.failed[name] = error
        else:
            report.passed.append(name)
    return report
