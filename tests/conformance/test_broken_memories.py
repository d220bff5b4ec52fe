"""The conformance suite fails a memory that breaks a rule, by the test that names the rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from session_middleware.conformance import MemoryConformance, check
from session_middleware.stores.sqlite import SQLiteSessionMemory
from tests.conformance import broken
from tests.support.forked_peers import ForkedPeers
from tests.support.programs import Programs
from tests.support.sqlite_suite import SQLiteSuite

FOUND_BY = {
    broken.NoFence: "test_a_lost_turn_writes_nothing",
    broken.EndsWithoutToken: "test_a_lost_turn_ends_no_other",
    broken.GuessableToken: "test_a_token_is_not_guessed",
    broken.RenewsLostLease: "test_a_lost_lease_is_not_renewed",
    broken.TakesHeldSession: "test_a_held_session_is_busy",
    broken.KeepsCancelled: "test_a_cancelled_acquire_leaves_the_session_free",
    broken.WallClock: "test_a_wrong_clock_takes_no_session_away",
    broken.TornBatch: "test_a_batch_with_a_fault_is_not_stored",
    broken.TornTurn: "test_a_cancelled_write_of_a_turn_is_whole",
    broken.TornAppend: "test_cancelled_writes_of_a_history_are_whole",
    broken.TornWrite: "test_a_write_that_fails_writes_nothing",
    broken.Reordered: "test_append_adds_at_the_end",
    broken.Doubled: "test_append_adds_at_the_end",
    broken.DoubledBelow: "test_the_storage_holds_each_item_once",
    broken.DoubledRepeat: "test_what_is_written_twice_is_there_once",
    broken.ChangesValues: "test_values_come_back_exactly",
    broken.SharesObjects: "test_what_is_stored_is_nobody_elses",
    broken.KeepsOpenCalls: "test_a_run_with_outputs_is_continued",
    broken.FoldsIds: "test_ids_are_taken_as_they_are",
    broken.SharesSessions: "test_sessions_do_not_touch_each_other",
    broken.LostOnReopen: "test_a_reopened_storage_has_everything",
    broken.StaleRead: "test_a_history_is_never_stale",
    broken.AcknowledgesEarly: "test_a_killed_process_loses_nothing_it_acknowledged",
    broken.KeepsWords: "test_a_cleared_session_leaves_no_byte",
    broken.ForgetsKeys: "test_a_key_that_was_done_is_a_duplicate",
    broken.ResumesTwice: "test_a_state_is_resumed_once",
    broken.DiscardsEverything: "test_discard_removes_exactly_the_turn",
    broken.TornDiscard: "test_a_cancelled_discard_is_whole",
    broken.DiscardsNothing: "test_discard_removes_exactly_the_turn",
    broken.ForgetsFields: "test_the_record_keeps_every_field",
    broken.LooksAway: "test_what_was_done_can_be_looked_up",
    broken.SwallowsFailures: "test_an_unavailable_storage_is_told",
}
"""The test that names the rule which a broken memory breaks."""


Suite = Callable[[type[SQLiteSessionMemory]], type[MemoryConformance]]


@pytest.fixture
def suite_of(programs: Programs, tmp_path: Path) -> Suite:
    """The suite of a kind of memory, on files in an empty folder."""

    def make(memory: type[SQLiteSessionMemory]) -> type[MemoryConformance]:
        given = {"kind": memory, "folder": tmp_path, "_programs": programs}
        return type("Suite", (ForkedPeers, SQLiteSuite), given)

    return make


@pytest.mark.parametrize("memory", FOUND_BY, ids=lambda memory: memory.__name__)
def test_a_broken_rule_is_found(memory: type[SQLiteSessionMemory], suite_of: Suite) -> None:
    """The test that names the rule fails."""
    report = check(suite_of(memory), FOUND_BY[memory])
    assert list(report.failed) == [FOUND_BY[memory]], report


def test_a_whole_memory_breaks_none_of_these_rules(suite_of: Suite) -> None:
    """The same tests pass, and none is skipped, on the memory that the broken ones are made of."""
    names = set(FOUND_BY.values())
    report = check(suite_of(broken.Broken), *sorted(names))
    assert set(report.passed) == names, report


def test_every_broken_memory_is_tried() -> None:
    """None is forgotten in the table above."""
    kinds = set(broken.Broken.__subclasses__())
    for kind in list(kinds):
        kinds |= set(kind.__subclasses__())
    assert kinds == set(FOUND_BY)
