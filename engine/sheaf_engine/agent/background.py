"""Blocking work in daemon threads: unlike a pool's, they never hold up the end of the process."""

import asyncio
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread of its own; its exceptions come through."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    Thread(target=_body, args=(loop, done, work), daemon=True, name="fetch").start()
    return await done


def _body(loop: asyncio.AbstractEventLoop, done: asyncio.Future[T], work: Callable[[], T]) -> None:
    settle: Callable[[], None]
    try:
        settle = partial(done.set_result, work())
    except Exception as error:  # noqa: BLE001 - it is raised again where it is awaited
        settle = partial(done.set_exception, error)
    if not loop.is_closed():
        loop.call_soon_threadsafe(_settle, done, settle)


def _settle(done: asyncio.Future[T], settle: Callable[[], None]) -> None:
    if not done.done():
        settle()
