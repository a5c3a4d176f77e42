"""Waiting for a condition by checking it again and again."""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

#: Seconds until a condition counts as failed. It is long because the machine may be busy with other work.
TIMEOUT_S = 60.0
POLL_S = 0.01

T = TypeVar("T")


@overload
async def wait_until(
    condition: Callable[[], Coroutine[Any, Any, T]], *, timeout_s: float = ..., poll_s: float = ...
) -> T: ...


@overload
async def wait_until(condition: Callable[[], T], *, timeout_s: float = ..., poll_s: float = ...) -> T: ...


async def wait_until(
    condition: Callable[[], Any], *, timeout_s: float = TIMEOUT_S, poll_s: float = POLL_S
) -> Any:
    """Return the first true result of a condition, which may be a coroutine function.

    Raises
    ------
    TimeoutError
        If there is none in time.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            result = condition()
            met = await result if inspect.isawaitable(result) else result
            if met:
                return met
            await asyncio.sleep(poll_s)


def wait_until_sync(condition: Callable[[], T], *, timeout_s: float = TIMEOUT_S, poll_s: float = POLL_S) -> T:
    """Do the same in a test that blocks."""
    deadline = time.monotonic() + timeout_s
    while not (met := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"a condition was not met within {timeout_s} s")
        time.sleep(poll_s)
    return met
