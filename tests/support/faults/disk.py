"""What is on a disk after a power failure, by the log of what processes did to their files.

A write is on the disk once a flush of its file that began after it succeeded, and so are a file's
creation and removal once its folder was flushed. Until then a power failure keeps the change,
loses it or tears it. A flush that fails loses its writes for ever, as the kernel counts those
pages as clean, though every reader of the file still sees them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Survives = Literal["nothing", "everything", "parts"]
SURVIVES: tuple[Survives, ...] = ("nothing", "everything", "parts")
"""What a power failure may leave of the writes that no flush has put on the disk."""

WROTE, TRUNCATED, SYNCING, SYNCED, NOT_SYNCED, UNLINKED, CREATED, NOTED = range(1, 9)

_RECORD = struct.Struct("6q")
_SECTOR = 512


@dataclass(slots=True, eq=False)
class Event:
    """One change of a file, as shim.c tells it."""

    change: int
    offset: int
    name: str
    flusher: tuple[int, int]
    data: bytes


@dataclass(slots=True)
class _File:
    """A file's content on the disk, and the changes that are not there yet."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)


def read_log(log: Path) -> Iterator[Event]:
    """The events of a log, oldest first."""
    content, at = log.read_bytes(), 0
    while at < len(content):
        change, offset, length, name_length, process, descriptor = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        name = content[at : at + name_length].decode()
        at += name_length
        data = b""
        if change in (WROTE, NOTED):
            data = content[at : at + length]
            at += length
        yield Event(change, offset, name, (process, descriptor), data)


class Disk:
    """The watched files as they are on the disk after a number of events.

    Example:
        for disk in Disk.at_each_flush(faults.log):
            disk.write_to(folder, survives="nothing")
            noted = disk.notes
    """

    def __init__(self) -> None:
        self.notes: list[bytes] = []
        """What processes wrote to files named ``*.notes`` until now, write by write."""
        self._files: dict[str, _File] = {}
        self._kept: dict[str, _File] = {}  # the folder as it is on the disk
        self._flushing: dict[tuple[int, int], list[Event]] = {}

    @classmethod
    def at_each_flush(cls, log: Path) -> Iterator[Disk]:
        """The disk right before and after each flush, and at the end; one object, changing."""
        disk = cls()
        for event in read_log(log):
            if event.change == SYNCING:
                yield disk
            disk.apply(event)
            if event.change in (SYNCED, NOT_SYNCED):
                yield disk
        yield disk

    def apply(self, event: Event) -> None:
        """Let this happen."""
        if event.change == NOTED:
            self.notes.append(event.data)
            return
        if event.change == CREATED:
            self._files[event.name] = _File()
        elif event.change == UNLINKED:
            self._files.pop(event.name, None)
        file = self._files.get(event.name)
        if file is None:
            if event.change == SYNCED:  # the folder
                self._kept = dict(self._files)
        elif event.change in (WROTE, TRUNCATED):
            file.pending.append(event)
        elif event.change == SYNCING:
            self._flushing[event.flusher] = list(file.pending)
        elif event.change in (SYNCED, NOT_SYNCED):
            flushed = set(self._flushing.pop(event.flusher))
            for change in [change for change in file.pending if change in flushed]:
                if event.change == SYNCED:
                    _change(file.durable, change)
                elif change.change == TRUNCATED:
                    flushed.discard(change)  # the length is in the journal of the file system
            file.pending = [change for change in file.pending if change not in flushed]

    def write_to(self, folder: Path, survives: Survives, seed: int = 0) -> None:
        """Write the files into the folder, as a power failure now would leave them."""
        chance = random.Random(seed)
        there = {"nothing": self._kept, "everything": self._files}.get(survives)
        if there is None:
            there = self._files if chance.random() < 0.5 else self._kept
        for target in folder.iterdir():
            target.unlink()
        for name, file in there.items():
            target = folder / Path(name).name
            content = bytearray(file.durable)
            for change in file.pending:
                if survives == "everything":
                    _change(content, change)
                elif survives == "parts":
                    _change_partly(content, change, chance)
            target.write_bytes(content)


def _change(content: bytearray, change: Event) -> None:
    if change.change == TRUNCATED:
        del content[change.offset :]
    if len(content) < change.offset:
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


def _change_partly(content: bytearray, change: Event, chance: random.Random) -> None:
    """Keep the change, lose it, or keep some of its sectors."""
    fate = chance.randrange(3)
    if change.change == TRUNCATED or fate == 1:
        if fate:
            _change(content, change)
        return
    if fate == 0:
        return
    for at in range(0, len(change.data), _SECTOR):
        if chance.random() < 0.5:
            part = change.data[at : at + _SECTOR]
            offset = change.offset + at
            _change(content, Event(WROTE, offset, change.name, change.flusher, part))
