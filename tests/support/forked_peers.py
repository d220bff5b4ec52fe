"""The conformance suite with its other processes forked, not started as interpreters.

They are started as anybody has them for the store on SQLite.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from session_middleware.conformance.processes import ProcessTests
from tests.support.programs import PIPE, Program, Programs


class ForkedPeers(ProcessTests):
    """Mixed into the suite of a store, before it."""

    @pytest.fixture(autouse=True)
    def _forked_by(self, programs: Programs) -> None:
        self._programs = programs

    async def _start(self, program: str) -> asyncio.subprocess.Process:
        made = self._programs.start("-c", program, stdout=PIPE, stderr=PIPE)
        return cast("asyncio.subprocess.Process", _Peer(made))


class _Peer:
    """What the suite needs of a process of asyncio's."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.kill = program.kill
        self.stdout = self

    @property
    def returncode(self) -> int | None:
        return self._program.poll()

    async def readline(self) -> bytes:
        assert self._program.stdout is not None
        return (await asyncio.to_thread(self._program.stdout.readline)).encode()

    async def wait(self) -> int:
        return await asyncio.to_thread(self._program.wait)

    async def communicate(self) -> Any:
        said = await asyncio.to_thread(self._program.communicate)
        return tuple(each.encode() for each in said)
