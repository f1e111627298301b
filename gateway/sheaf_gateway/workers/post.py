"""A worker at its post: it does what its supervisor tells it, and leaves when that is gone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

from sheaf_gateway.workers.place import Channel, Place, Told

_LOOK_S = 0.02


class Serving(Protocol):
    """What a post needs of a gateway."""

    store: Any
    inference: Any

    async def adopt(self, sockets: Mapping[int, Callable[[], socket.socket]]) -> None:
        """Accept on these sockets of others, and on no more."""


class Post:
    """`retired`: another process has taken over."""

    def __init__(self, serving: Serving, place: Place | None, stop: asyncio.Event) -> None:
        self.retired = False
        self._serving = serving
        self._place = place
        self._stop = stop

    async def run(self, place: Place, channel: Channel) -> None:
        """Follow the supervisor's words until it is gone."""
        channel.say("listening")
        ready = asyncio.create_task(self._ready(channel))
        try:
            while (told := await channel.hear()) is not None:
                await self._heed(place, told)
        finally:
            ready.cancel()
            self._stop.set()

    async def _heed(self, place: Place, told: Told) -> None:
        if told.word == "adopt":
            sockets = {index: partial(place.socket_of, index) for index in told.sockets if index < place.count}
            await self._serving.adopt(sockets)
        elif told.word == "whole":
            self._serving.inference.whole = True
        elif told.word == "retire":
            self.retired = True
            self._stop.set()

    async def _ready(self, channel: Channel) -> None:
        while not self._serving.store.known:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        channel.say("ready")


@asynccontextmanager
async def posted(serving: Serving, place: Place | None, stop: asyncio.Event) -> AsyncIterator[Post]:
    """A worker's post; one that nobody looks after where there is no supervisor."""
    post = Post(serving, place, stop)
    if place is None:
        yield post
        return
    channel = await Channel.over(socket.socket(fileno=place.control))
    running = asyncio.create_task(post.run(place, channel))
    try:
        yield post
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await channel.close()
