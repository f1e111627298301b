"""This gateway among others: what happens here is told within `FLUSH_S`, what others tell is worked in as it comes.

Where there is nobody to tell, nothing is noted. Whatever comes in is checked (seal, time, form) before it counts, and
nothing that comes in can end or block anything here.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.gossip.hearing import Hearing
from sheaf_gateway.gossip.telling import Teller
from sheaf_gateway.gossip.wire import BadBatchError, Batch, decode
from sheaf_gateway.peers import metrics
from sheaf_gateway.peers.finding import Finder
from sheaf_gateway.peers.links import Replicas, Siblings
from sheaf_gateway.peers.seal import Keys, opened, sealed
from sheaf_gateway.routing.router import Router

log = structlog.get_logger(__name__)

FLUSH_S = 0.005
BEAT_S = 1.0
WINDOW_S = 30.0
_unix_now = time.time


class Core(Protocol):
    """What is shared of a gateway."""

    router: Router
    admission: Admission

    def call_in(self, model: str) -> None:
        """Let in who waits for a Model, where there is room."""


class Company:
    """The other gateways, and this one's voice."""

    def __init__(self, core: Core, keys: Keys) -> None:
        self.life = secrets.randbits(52) + 1
        self._core = core
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self.hearing = Hearing(self.life, core.router, core.admission)
        self.teller = Teller(self.life, self._arm)
        self.siblings: Siblings | None = None
        self.replicas: Replicas | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._telling = False

    def begin(self, *, siblings: Siblings | None, replicas: Replicas | None, finder: Finder | None) -> None:
        """Speak to whoever is there from now on."""
        self.siblings, self.replicas = siblings, replicas
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._keys.follow())]
        if finder is not None and replicas is not None:
            reach = self._reached(replicas)
            self._tasks.append(asyncio.create_task(finder.run(reach)))

    async def close(self) -> None:
        """Say goodbye and be silent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._telling:
            self._say(leaving=True)
        self._tell(on=False)
        for link in (self.siblings, self.replicas):
            if link is not None:
                link.close()
        self.siblings = self.replicas = None

    def from_sibling(self, data: bytes) -> None:
        """A datagram of another worker, or one that it passed on."""
        self._hear(data)

    def from_replica(self, data: bytes) -> None:
        """A datagram of another replica, which reached this worker alone."""
        if self._hear(data) and self.siblings is not None:
            self.siblings.send(data)

    def _reached(self, replicas: Replicas) -> Callable[[set[tuple[str, int]]], None]:
        def reach(found: set[tuple[str, int]]) -> None:
            before = replicas.targets
            replicas.reach(found)
            if replicas.targets != before:
                log.info("gateways_found", addresses=len(replicas.targets))
                self._look()

        return reach

    async def _beat(self) -> None:
        while True:
            self._look()
            if self._telling:
                self._say()
            for model in self.hearing.expire(self._loop.time()):
                self._core.call_in(model)
            metrics.PEERS.set(len(self.hearing.peers))
            await asyncio.sleep(BEAT_S)

    def _look(self) -> None:
        if self.siblings is not None:
            self.siblings.look()
        there = any(link is not None and link.targets for link in (self.siblings, self.replicas))
        if there != self._telling:
            self._tell(on=there)

    def _tell(self, *, on: bool) -> None:
        self._telling = on
        self._core.admission.tell(on=on)
        self._core.router.teller = self.teller if on else None
        if on:
            self.teller.summarise()
            self._arm()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._telling:
            self._say()

    def _say(self, *, leaving: bool = False) -> None:
        self.teller.doors(self._core.admission)
        key = self._keys.keys[0]
        for payload in self.teller.flush(_unix_now(), leaving=leaving):
            data = sealed(key, payload)
            for link in (self.siblings, self.replicas):
                if link is not None and link.targets:
                    link.send(data)

    def _hear(self, data: bytes) -> bool:
        batch = self._checked(data)
        if batch is None:
            return False
        known = batch.life in self.hearing.peers
        heard = self.hearing.take(batch, self._loop.time())
        if not heard.taken:
            metrics.DROPPED.labels("repeated").inc()
            return False
        metrics.HEARD.inc()
        if not known:
            self._look()
        if heard.wanted and self._telling:
            self.teller.want(batch.life)
        if heard.asked:
            metrics.SUMMARIES.inc()
            self.teller.summarise()
        for model in heard.doors:
            self._core.call_in(model)
        return True

    def _checked(self, data: bytes) -> Batch | None:
        payload = opened(self._keys.keys, data)
        if payload is None:
            metrics.DROPPED.labels("forged").inc()
            return None
        try:
            batch = decode(payload)
        except BadBatchError:
            metrics.DROPPED.labels("garbage").inc()
            return None
        if abs(_unix_now() - batch.at) > WINDOW_S:
            metrics.DROPPED.labels("stale").inc()
            return None
        return batch
