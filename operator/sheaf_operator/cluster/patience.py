"""Waiting for something, but not for ever."""

import asyncio


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, so many seconds at most; whether it is.

    Not `asyncio.wait_for`: before Python 3.12 that swallows a cancellation which meets the event.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
