"""The SQLite memory passes the suite that ships, on a file and without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sqlite_suite import SQLiteSuite, SQLiteWithoutAFileSuite


class TestSQLite(SQLiteSuite):
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path


class TestSQLiteWithoutAFile(SQLiteWithoutAFileSuite):
    pass
