"""The clock that leases count in: one for the whole machine, and nobody sets it.

Leases only; every moment that people read is wall time. A WAL file is used by the processes of
one machine, so they all see this clock. Its readings mean something only within one boot, whose
id is stored with each lease; without that id, a lease ends by wall time.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = "/proc/self/ns/time"
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Now(NamedTuple):
    """One moment, by the clock that people read and by the one that leases count in.

    Attributes:
        wall: seconds since 1970.
        machine: seconds since the machine was booted, its sleep included where the platform
            counts it.
        boot: the same for two processes that see the same machine clock; None: nobody can tell.
    """

    wall: float
    machine: float
    boot: int | None


def now() -> Now:
    """Read both clocks."""
    machine = time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
    return Now(time.time(), machine, boot_id())


@cache
def boot_id() -> int | None:
    """A number for this boot, and for the clock that this process was given in it."""
    name = _boot_name()
    if name is None:
        return None
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest())


def _boot_name() -> str | None:
    with suppress(OSError):
        boot = _BOOT_ID.read_text().strip()
        with suppress(FileNotFoundError):  # a container may have been given a clock of its own
            boot = f"{boot} {os.readlink(_TIME_NAMESPACE)}"
        return boot
    return _boot_id_of_macos() if sys.platform == "darwin" else None


def _boot_id_of_macos() -> str | None:
    text = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(text))
    failed = ctypes.CDLL(None).sysctlbyname(
        b"kern.bootsessionuuid", text, ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return None if failed else text.value.decode()
