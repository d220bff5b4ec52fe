"""Which small faults of the code the tests would notice: ``python -m tests.mutants``.

python -m tests.mutants                        200 mutants of the turn, history and store modules
python -m tests.mutants --count 50 --seed 7    another sample
python -m tests.mutants --only history         mutants of the modules whose path contains this

A mutant is the package with one change: a comparison, a condition, a number, a return value, a
statement that is left out. It is killed by the first test that fails on it. Only the tests that
execute the changed line are run, the quickest first, in a copy of the tree. Survivors are printed
with their change. Needs Linux, and nothing but what the tests need.
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import coverage
import pytest

from tests.support import ROOT

TARGETS = (
    "_turns",
    "history.py",
    "repair.py",
    "pairs.py",
    "stores/rules.py",
    "stores/items.py",
    "stores/base.py",
    "stores/leases.py",
    "stores/flat",
    "stores/in_memory",
    "stores/sqlite",
)
TESTS = (
    "turns",
    "history",
    "entry",
    "telemetry",
    "stores/sqlite",
    "stores/in_memory",
    "stores/flat",
    "acceptance/test_speed_rules.py",
)
SLOW = ("test_processes.py", "test_power.py", "test_exhaustion.py")
"""Test modules whose processes no tracer sees, and which take longest."""

MOST_TESTS = 60  # for a mutant: more than that execute some lines, and do the same there
PATIENCE = 60.0  # seconds: a mutant that does not end is noticed as well

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module."""

    path: str
    line: int
    change: str
    number: int


# --- making them -----------------------------------------------------------------------------


def changes_of(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place, with a name for the change."""
    new: Any = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
            new.ops = [_COMPARISONS[type(op)]()]
            yield "comparison", new
        case ast.BoolOp():
            new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "and/or", new
        case ast.UnaryOp(op=ast.Not()):
            yield "without not", new.operand
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            new.op = _OPERATORS[type(op)]()
            yield "plus/minus", new
        case ast.Constant(value=bool()):
            new.value = not node.value
            yield "true/false", new
        case ast.Constant(value=int()):
            new.value = node.value + 1
            yield "one more", new
        case ast.Return(value=ast.expr()):
            new.value = ast.Constant(None)
            yield "returns None", new
        case (
            ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Raise() | ast.Delete()
        ):
            yield "left out", ast.Pass()
        case ast.If() | ast.While():
            new.test = ast.UnaryOp(ast.Not(), new.test)
            yield "condition turned round", new


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node inside a function, with where it hangs."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in function.body:
            for parent in ast.walk(statement):
                for name, value in ast.iter_fields(parent):
                    if name in ("annotation", "returns", "decorator_list"):
                        continue
                    for at, child in enumerate(value if isinstance(value, list) else [value]):
                        if isinstance(child, ast.AST):
                            yield parent, name, at if isinstance(value, list) else None, child
        yield from ((function, "body", at, child) for at, child in enumerate(function.body))


def _all(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, str, ast.AST]]:
    """Every change of a module: where it hangs, what is there, its name, what comes instead."""
    seen: set[int] = set()  # what is in a function within a function is met twice
    for parent, name, at, child in _places(tree):
        if id(child) not in seen:
            seen.add(id(child))
            for change, new in changes_of(child):
                yield parent, name, at, child, change, new


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of a module."""
    lines = path.read_text().splitlines()
    found = []
    for number, (_, _, _, child, change, _) in enumerate(_all(ast.parse(path.read_text()))):
        line = child.lineno  # type: ignore[attr-defined]  # what can change has a place
        what = f"{change}: {lines[line - 1].strip()}"
        found.append(Mutant(str(path.relative_to(ROOT)), line, what, number))
    return found


def source_of(mutant: Mutant) -> str:
    """The module of a mutant, with its change."""
    tree = ast.parse((ROOT / mutant.path).read_text())
    parent, name, at, child, _, new = next(itertools.islice(_all(tree), mutant.number, None))
    _put(parent, name, at, ast.copy_location(new, child))
    return ast.unparse(ast.fix_missing_locations(tree))


def _put(parent: ast.AST, name: str, at: int | None, node: ast.AST) -> None:
    if at is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[at] = node


def sample(count: int, seed: int, only: str) -> list[Mutant]:
    """So many mutants, the same for the same seed and code."""
    package = ROOT / "session_middleware"
    paths = [path for target in TARGETS for path in sorted(_modules(package / target))]
    every = [mutant for path in paths if only in str(path) for mutant in mutants_of(path)]
    return random.Random(seed).sample(every, min(count, len(every)))


def _modules(target: Path) -> Iterator[Path]:
    return iter([target]) if target.suffix == ".py" else target.glob("*.py")


# --- which tests execute a line --------------------------------------------------------------


class Recorder:
    """A pytest plugin: which test executed which line, and how long each took."""

    def __init__(self) -> None:
        self.coverage = coverage.Coverage(data_file=None, source_pkgs=["session_middleware"])
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.coverage.switch_context(item.nodeid)
        began = time.monotonic()
        outcome = yield
        self.seconds.setdefault(item.nodeid, time.monotonic() - began)  # one that failed has none
        return outcome

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.seconds[report.nodeid] = float("inf")


def record(into: Path) -> None:
    """Run the tests once, and write which of them execute each line."""
    recorder = Recorder()
    recorder.coverage.start()
    tests = [str(ROOT / "tests" / folder) for folder in TESTS]
    tests += [str(path) for path in (ROOT / "tests" / "stores").glob("test_*.py")]
    ignored = [f"--ignore-glob=*{name}" for name in SLOW]
    pytest.main(["-q", "-p", "no:cacheprovider", *ignored, *tests], plugins=[recorder])
    recorder.coverage.stop()
    data = recorder.coverage.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    for path in data.measured_files():
        by_line = data.contexts_by_lineno(path)
        lines[str(Path(path).relative_to(ROOT))] = {
            line: [name for name in names if name in recorder.seconds]
            for line, names in by_line.items()
        }
    into.write_text(json.dumps({"lines": lines, "seconds": recorder.seconds}))


# --- trying them -----------------------------------------------------------------------------


@dataclass
class Trial:
    """Tries mutants, each in a process that is forked when all that is slow is imported."""

    recorded: dict[str, Any]
    folder: Path

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that execute the mutant's line: the quickest of each module, then the next."""
        by_line = self.recorded["lines"].get(mutant.path, {})
        seconds = self.recorded["seconds"]
        names = [name for name in by_line.get(str(mutant.line), []) if seconds[name] < PATIENCE / 3]
        modules: dict[str, list[str]] = {}
        for name in sorted(names, key=seconds.__getitem__):
            modules.setdefault(name.partition("::")[0], []).append(name)
        rounds = itertools.zip_longest(*modules.values())
        return [name for each in rounds for name in each if name is not None][:MOST_TESTS]

    def is_killed(self, mutant: Mutant) -> bool:
        """Whether a test fails on the mutant."""
        tests = self.tests_of(mutant)
        return bool(tests) and self.fails(tests, mutant)

    def fails(self, tests: list[str], mutant: Mutant | None = None) -> bool:
        """Whether one of these tests fails, on the mutant or on the package as it is."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            tree = Path(name)
            for part in ("session_middleware", "tests", "examples", "docs"):
                shutil.copytree(ROOT / part, tree / part)
            shutil.copy(ROOT / "pyproject.toml", tree)
            if mutant is not None:
                (tree / mutant.path).write_text(source_of(mutant))
            return self._fail_in(tree, tests)

    def _fail_in(self, tree: Path, tests: list[str]) -> bool:
        child = os.fork()
        if child == 0:
            _run_in(tree, tests)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status != _BROKEN << 8, "pytest did not run the tests"
                return status != 0
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True


def _run_in(tree: Path, tests: list[str]) -> NoReturn:
    """Be a process that runs these tests on the package of this folder, and nothing else."""
    try:
        os._exit(_exit_code(tree, tests))
    finally:  # whatever happens, this is not another one that tries mutants
        os._exit(_BROKEN)


def _exit_code(tree: Path, tests: list[str]) -> int:
    """What pytest says: 0 where all passed, 1 or 2 where one failed or could not be imported."""
    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.split(".")[0] in _OURS]:
        del sys.modules[name]
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    # A plugin that the SDK uses itself is there before pytest.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", f"ignore::{_IMPORTED_BEFORE}"]
    code = int(pytest.main([*options, f"--rootdir={tree}", *tests]))
    return code if code in (0, 1, 2) else _BROKEN


_BROKEN = 9  # the exit code of a process that could not run its tests
_OURS = ("session_middleware", "tests")
_IMPORTED_BEFORE = "pytest.PytestAssertRewriteWarning"


def main() -> None:
    """Sample, record, try, and print the survivors."""
    options = argparse.ArgumentParser("python -m tests.mutants")
    options.add_argument("--count", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", default="")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--recorded", type=Path, help="where the recording is, or is to be kept")
    asked = options.parse_args()
    mutants = sample(asked.count, asked.seed, asked.only)
    with tempfile.TemporaryDirectory() as name:
        recorded = asked.recorded or Path(name) / "recorded.json"
        if not recorded.exists():
            child = os.fork()
            if child == 0:
                try:
                    record(recorded)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
        import agents  # noqa: F401 - once, for all processes that are forked from here

        trial = Trial(json.loads(recorded.read_text()), Path(name))
        tests = sorted({name for mutant in mutants[:10] for name in trial.tests_of(mutant)})
        assert not trial.fails(tests), "the tests must pass on the package as it is"
        with ThreadPoolExecutor(asked.workers) as pool:
            killed = 0
            for mutant, dead in zip(mutants, pool.map(trial.is_killed, mutants), strict=True):
                killed += dead
                if not dead:
                    tried = "" if trial.tests_of(mutant) else " (no test executes it)"
                    print(f"{mutant.path}:{mutant.line}: {mutant.change}{tried}", flush=True)
    print(f"{killed} of {len(mutants)} mutants were killed")


if __name__ == "__main__":
    main()
