"""What every test starts from: no network, no tracing, nothing left installed.

Fixtures hand out fresh things and take them down; a test that wants traces asks for
``sdk_traces`` or ``otel``.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from agents.tracing import set_trace_processors, set_tracing_disabled
from agents.tracing.processor_interface import TracingProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from session_middleware.testing.provider import Provider, local_provider
from tests.support.markers import Listener, said_in, said_in_spans
from tests.support.programs import Programs, forking_programs
from tests.support.sessions import own_loop

pytest.register_assert_rewrite("session_middleware.conformance")

# Set before anything reads them: a developer's own key must never reach a test, and no test
# depends on what a machine happens to have in its environment.
for _name in list(os.environ):
    if _name.startswith(("OPENAI_", "SESSION_MIDDLEWARE_", "OTEL_")):
        del os.environ[_name]

# Processors given here replace the SDK's own, which would export over the network.
set_trace_processors([])
set_tracing_disabled(True)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The default suite runs in four processes, which wait most of the time; else there is one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 4 if whole and config.option.markexpr.startswith("not ") else 0


def _whole_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


_until_now: list[int] = []


def pytest_collection_finish() -> None:
    """No collection of garbage looks at what is there before the first test: it takes seconds."""
    import hypothesis  # noqa: F401 - asks what refers to its objects, as long as that is told

    gc.collect()
    gc.freeze()
    _until_now[:] = [_whole_collections()]


def pytest_runtest_logfinish() -> None:
    """Nor does one look again, in a later test, at what has outlived a collection of everything."""
    if _until_now and _until_now != [_whole_collections()]:  # not where other processes run tests
        gc.collect(1)
        gc.freeze()
        _until_now[:] = [_whole_collections()]


# --- tracing -------------------------------------------------------------------------------


@dataclass
class SDKTraces(TracingProcessor):
    """What the SDK traced, as it would have been exported."""

    started: list[dict[str, Any]] = field(default_factory=list)
    ended: list[dict[str, Any]] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)

    def on_trace_start(self, trace: Any) -> None:
        self.started.append(trace.export() or {})

    def on_trace_end(self, trace: Any) -> None:
        self.ended.append(trace.export() or {})

    def on_span_start(self, span: Any) -> None:
        """Spans are recorded when they end."""

    def on_span_end(self, span: Any) -> None:
        self.spans.append(span.export() or {})

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self) -> None:
        """Nothing is buffered."""

    @property
    def group_ids(self) -> list[str | None]:
        """The group id of every trace that began, in order."""
        return [trace.get("group_id") for trace in self.started]


@pytest.fixture
def sdk_traces() -> Iterator[SDKTraces]:
    """The SDK's tracing, on for this test and recorded in memory."""
    traces = SDKTraces()
    set_trace_processors([traces])
    set_tracing_disabled(False)
    yield traces
    set_tracing_disabled(True)
    set_trace_processors([])


@dataclass
class OTel:
    """OpenTelemetry providers of one test, and what was recorded through them."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every ended span, in the order in which they ended."""
        return list(self.exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        """The one ended span of this name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    @property
    def metrics(self) -> dict[str, list[Any]]:
        """The data points of every metric, by the metric's name."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def otel() -> Iterator[OTel]:
    """OpenTelemetry in memory; pass its providers in ``telemetry=``. Nothing global is set."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    meter_provider = MeterProvider([reader], shutdown_on_exit=False)
    made = OTel(tracer_provider, meter_provider, exporter, reader)
    yield made
    assert said_in_spans(made.spans) == []
    assert said_in(made.metrics) == []
    tracer_provider.shutdown()
    meter_provider.shutdown()


@pytest.fixture(autouse=True)
def _no_words_in_the_log() -> Iterator[None]:
    """No record of any test holds a word of a conversation, at whatever level it is heard."""
    listener = Listener()
    logger = logging.getLogger("session_middleware")
    logger.addHandler(listener)
    yield
    logger.removeHandler(listener)
    assert listener.found == []


# --- a provider on this machine ------------------------------------------------------------


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A model provider on 127.0.0.1, over real HTTP."""
    with local_provider() as running:
        yield running


# --- programs ------------------------------------------------------------------------------


_until_the_run_ends = ExitStack()


@cache
def _forks_programs() -> str:
    return _until_the_run_ends.enter_context(forking_programs()).path


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """All workers of a run fork their programs from one process."""
    node.workerinput["forks_programs"] = _forks_programs()


def pytest_unconfigure() -> None:
    _until_the_run_ends.close()


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    """Starts programs by a fork, not as interpreters that import everything anew."""
    for_all = getattr(request.config, "workerinput", {}).get("forks_programs")
    with nullcontext(Programs(for_all)) if for_all else forking_programs() as made:
        yield made


# --- servers -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server to share: whoever uses it does so under a key prefix of their own."""
    from tests.support.valkey import url_in_environment, valkey_server

    url = url_in_environment()
    if url is not None:
        yield url
        return
    with valkey_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """A PostgreSQL server of the run's own, unless the environment names another."""
    from tests.support.postgres import URL_IN_ENVIRONMENT, PostgresServer

    given = os.environ.get(URL_IN_ENVIRONMENT)
    if given:
        yield given
        return
    server = PostgresServer()
    yield server.url
    server.remove()


# --- nothing is left behind ----------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _no_process_stays() -> Iterator[None]:
    """Every process that a test or a fixture started has ended, and was waited for."""
    yield
    threads = Path("/proc/self/task")
    left = [child for file in threads.glob("*/children") for child in file.read_text().split()]
    assert left == [], "these processes were left running"


@pytest.fixture(autouse=True)
def _nothing_stays_installed() -> Iterator[None]:
    """A test that leaves the run middleware installed fails, and does not touch the next one."""
    yield
    from session_middleware import _current as _scope
    from session_middleware import uninstall
    from session_middleware._entry.installation import current_installation

    left = current_installation()
    uninstall()
    assert left is None, "the test left install() in force"
    assert _scope.current_scope() is None, "the test left a session in force"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that forgets to name its file writes into its own directory, not into the checkout."""
    monkeypatch.chdir(tmp_path)


# --- memories ------------------------------------------------------------------------------


@pytest.fixture
async def make_memory(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Make SQLite memories, all closed at the end of the test.

    ``make_memory()`` opens one file of the test's directory, every time the same;
    ``make_memory("other.db", lease=2)`` another, with options.
    """
    from session_middleware import SQLiteSessionMemory

    made: list[Any] = []

    def make(name: str = "memory.db", **options: Any) -> Any:
        memory = SQLiteSessionMemory(tmp_path / name, **options)
        made.append(memory)
        return memory

    yield make
    for memory in made:
        await memory.cleanup()


@pytest.fixture
def memory(make_memory: Callable[..., Any]) -> Any:
    """One SQLite memory on a file of the test's own."""
    return make_memory()


@pytest.fixture(params=["in memory", "sqlite"])
def each_memory(request: pytest.FixtureRequest) -> Any:
    """Every memory that ships with the package, one after the other."""
    if request.param == "sqlite":
        return request.getfixturevalue("memory")
    from session_middleware import InMemorySessionMemory

    return InMemorySessionMemory()


@pytest.fixture
def do() -> Iterator[Any]:
    """For tests without an event loop of their own: ``do(awaitable)`` gives its outcome."""
    with own_loop() as run:
        yield run
