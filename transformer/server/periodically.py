"""Work that a process repeats while it serves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


@contextlib.asynccontextmanager
async def periodically(interval_s: float, action: Callable[[], object]) -> AsyncIterator[None]:
    """Call a function while the block runs, each time after so many seconds."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(interval_s)
            action()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
