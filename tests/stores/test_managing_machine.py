"""Random sequences of managing methods, in two scopes of one memory, against a model of each."""

from __future__ import annotations

import asyncio
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from session_middleware import InMemorySessionMemory, InvalidSessionId, SQLiteSessionMemory
from session_middleware.conformance.conversations import lines_of
from session_middleware.conformance.samples import assistant, user

TENANTS = ("a", "a:b")
IDS = ("b:1", "1", "2")

tenants = st.sampled_from(TENANTS)
ids = st.sampled_from(IDS)


class Managing(RuleBasedStateMachine):
    """Each scope must be what its own model says, whatever was done in the other one."""

    kind = "in memory"

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        path = Path(self.folder.name) / "chat.db"
        self.memory: Any = (
            InMemorySessionMemory() if self.kind == "in memory" else SQLiteSessionMemory(path)
        )
        self.scopes = {tenant: self.memory.scoped(tenant) for tenant in TENANTS}
        # Of each session the items of its turns, an empty list for one that was undone, and its
        # title.
        self.model: dict[str, dict[str, Any]] = {tenant: {} for tenant in TENANTS}
        self.exports: list[tuple[list[str], dict[str, Any]]] = []
        self.count = 0

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.do(self.memory.cleanup())
            self.loop.close()
            self.folder.cleanup()

    @rule(tenant=tenants, session_id=ids)
    def append(self, tenant: str, session_id: str) -> None:
        self.count += 1
        items = [user(str(self.count)), assistant("a")]
        self.do(self.scopes[tenant].append_to_session(session_id, items))
        session = self.model[tenant].setdefault(session_id, {"turns": [], "title": None})
        session["turns"].append(items)

    @rule(tenant=tenants, session_id=ids, new_id=ids, back=st.integers(0, 3))
    def fork(self, tenant: str, session_id: str, new_id: str, back: int) -> None:
        model, scope = self.model[tenant], self.scopes[tenant]
        session = model.get(session_id)
        last = None if session is None or back == 0 else max(1, len(session["turns"]) - back)
        work = scope.fork(session_id, new_id, last)
        if session is None or new_id in model:
            with pytest.raises(InvalidSessionId):
                self.do(work)
            return
        self.do(work)
        model[new_id] = deepcopy(session)
        model[new_id]["turns"] = model[new_id]["turns"][:last]

    @rule(tenant=tenants, session_id=ids, turns=st.integers(1, 3))
    def undo(self, tenant: str, session_id: str, turns: int) -> None:
        removed = self.do(self.scopes[tenant].undo(session_id, turns))
        session = self.model[tenant].get(session_id, {"turns": []})
        expected = []
        for number in range(len(session["turns"]) - 1, -1, -1):
            if session["turns"][number] and len(expected) < turns:
                expected.append((number + 1, session["turns"][number]))
                session["turns"][number] = []
        assert [(record.turn, record.items) for record in removed] == expected

    @rule(tenant=tenants, session_id=ids)
    def delete(self, tenant: str, session_id: str) -> None:
        gone = self.do(self.scopes[tenant].delete(session_id))
        assert gone == (self.model[tenant].pop(session_id, None) is not None)

    @rule(tenant=tenants, prefix=st.sampled_from(["b", "b:", "1"]))
    def delete_prefix(self, tenant: str, prefix: str) -> None:
        model = self.model[tenant]
        gone = [session_id for session_id in model if session_id.startswith(prefix)]
        assert self.do(self.scopes[tenant].delete_prefix(prefix)) == len(gone)
        for session_id in gone:
            del model[session_id]

    @rule(tenant=tenants, session_id=ids, title=st.sampled_from([None, "One", "Two"]))
    def title(self, tenant: str, session_id: str, title: str | None) -> None:
        work = self.scopes[tenant].set_title(session_id, title)
        if session_id not in self.model[tenant]:
            with pytest.raises(InvalidSessionId):
                self.do(work)
            return
        self.do(work)
        self.model[tenant][session_id]["title"] = title

    @rule(tenant=tenants, prefix=st.sampled_from([None, "b"]))
    def export(self, tenant: str, prefix: str | None) -> None:
        lines = self.do(lines_of(self.scopes[tenant], prefix=prefix))
        told = {
            session_id: deepcopy(session)
            for session_id, session in self.model[tenant].items()
            if session_id.startswith(prefix or "")
        }
        self.exports.append((lines, told))

    @rule(tenant=tenants, which=st.integers(0, 5))
    def import_again(self, tenant: str, which: int) -> None:
        """What one scope exported may be imported by the other."""
        if which < len(self.exports):
            lines, told = self.exports[which]
            self.do(self.scopes[tenant].import_(lines, replace=True))
            self.model[tenant] |= deepcopy(told)

    @invariant()
    def each_scope_is_its_model(self) -> None:
        if not hasattr(self, "model"):
            return
        for tenant, scope in self.scopes.items():
            model = self.model[tenant]
            page = self.do(scope.sessions(order="id"))
            assert {info.session_id: info.title for info in page} == {
                session_id: session["title"] for session_id, session in model.items()
            }
            for info in page:
                turns = model[info.session_id]["turns"]
                records = self.do(scope.turns(info.session_id))
                assert [record.items for record in reversed(records)] == turns
                assert info.items == sum(map(len, turns))
                assert info.turns == len(turns)
        full = {
            scope.full_id(session_id)
            for tenant, scope in self.scopes.items()
            for session_id in self.model[tenant]
        }
        assert {info.session_id for info in self.do(self.memory.sessions())} == full


@pytest.mark.parametrize("kind", ["in memory", "sqlite"])
def test_managing_keeps_to_its_scope(kind: str) -> None:
    """Forks, undos, exports and imports, in any order."""
    machine = type("Machine", (Managing,), {"kind": kind})
    few = settings(
        max_examples=30 if kind == "in memory" else 8,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=few)
