"""Count what a distribution installs beyond another one it depends on.

    python count_dependencies.py session-middleware openai-agents 5

Walks the metadata of what is installed beside this interpreter; exits with 1 when more than that
many distributions (the first one itself not counted) come on top.
"""

# ruff: noqa: T201 - it prints what it counts

import sys
from importlib.metadata import distribution

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def closure(root: str) -> set[str]:
    """The names of everything that installing ``root`` installs, itself included."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(root), "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                key = canonicalize_name(needed.name)
                waiting += [(key, ""), *((key, wanted) for wanted in needed.extras)]
    return {name for name, _ in seen}


def main() -> int:
    """Print the difference; returns the exit code."""
    ours, base, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
    extra = sorted(closure(ours) - closure(base) - {canonicalize_name(ours)})
    print(f"{ours} installs {len(extra)} beyond {base} (at most {limit}): {', '.join(extra)}")
    return int(len(extra) > limit)


if __name__ == "__main__":
    sys.exit(main())
