"""Connecting to the one of several hosts that is the primary.

asyncpg asks the hosts of a URL one after the other, all within one time limit. A host that stalls,
or whose packets are dropped, would use up the limit although the next host is the new primary, or
soon will be. So the next host is asked as well when one does not answer soon, and those that were
no primary are asked again for as long as another is silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import asyncpg

from session_middleware.stores.postgres.url import each_host

_SOON = 0.5  # seconds for a host to answer before others are asked as well


async def connect(dsn: str | None = None, **options: Any) -> Any:
    """What ``asyncpg.connect`` returns, from the first host that answers and fits the options.

    Raises:
        Exception: every host has answered or failed, and none fits; of several errors, one of a
            host that could not be asked.
    """
    later: list[str | None] = [None] if dsn is None else [*each_host(dsn)]
    asked: dict[asyncio.Task[Any], str | None] = {}
    failed: dict[str | None, BaseException] = {}
    try:
        while later or asked:
            if later:
                host = later.pop(0)
                asked[asyncio.ensure_future(asyncpg.connect(host, **options))] = host
            answered, _ = await asyncio.wait(
                asked, timeout=_SOON, return_when=asyncio.FIRST_COMPLETED
            )
            for task in answered:
                host = asked.pop(task)
                failure = task.exception()
                if failure is None:
                    return task.result()
                failed[host] = failure
            if not later and not answered:
                later = [host for host in failed if host not in asked.values()]
    finally:
        await _leave(asked)
    raise min(failed.values(), key=_says_little)


async def _leave(asked: Iterable[asyncio.Task[Any]]) -> None:
    """Ask no more; a host that answered at the same moment is not needed."""
    for task in asked:
        task.cancel()
    for made in await asyncio.gather(*asked, return_exceptions=True):
        if not isinstance(made, BaseException):
            made.terminate()


def _says_little(failure: BaseException) -> bool:
    """Whether it is only that of a standby: the primary may be a host that could not be asked."""
    return isinstance(failure, asyncpg.TargetServerAttributeNotMatched)
