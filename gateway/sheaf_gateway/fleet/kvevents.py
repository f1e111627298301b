"""Listening to what engines say of their KV caches: one subscription for each pod that publishes events.

Subscriptions follow the store: an engine that starts again, another address or another Model is another subscription,
which begins with nothing. A gap that cannot be filled begins anew, too. Subscriptions and what is held of a pod and of
all are bounded; what is left out is predicted from what was sent (see `routing.index`).
"""

import asyncio
from contextlib import aclosing
from typing import NamedTuple

import msgspec
import structlog
import zmq
import zmq.asyncio

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.agents import AgentError
from sheaf_gateway.fleet.kvstream import batches
from sheaf_gateway.fleet.snapshot import PodSnapshot
from sheaf_gateway.fleet.store import Change, FleetStore
from sheaf_gateway.fleet.vocabularies import Vocabularies, Vocabulary
from sheaf_gateway.routing.announced import Batch, UnsupportedError, absorb
from sheaf_gateway.routing.blocks import Blocks
from sheaf_gateway.routing.form import Form
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.prefix import seed

log = structlog.get_logger(__name__)

MAX_SUBSCRIPTIONS = 2_048
MAX_BLOCKS = 2**20
MAX_BLOCKS_OF_A_POD = 2**18
_YIELD_EVERY = 16
_PATIENCE_S = 0.5
_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 60.0
_SCHEMES = ("tcp://", "ipc://")


class TooManyBlocksError(Exception):
    """More blocks than are held of a pod, or of all."""


_BROKEN = (
    AgentError,
    TooManyBlocksError,
    zmq.ZMQError,
    msgspec.MsgspecError,
    ArithmeticError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What reading the events of an engine may raise, whatever it sends."""


class Source(NamedTuple):
    """Whose events: those of a pod's engine in one life."""

    pod: str
    epoch: int
    model: str
    agent_url: str
    events: str
    replay: str

    @property
    def key(self) -> tuple[str, int]:
        """The engine in the prefix index."""
        return self.pod, self.epoch


class KvEvents:
    """Keeps the index's announced tier, and the forms of Models, up to date until stopped."""

    def __init__(self, store: FleetStore, index: PrefixIndex, vocabularies: Vocabularies) -> None:
        self.forms: dict[str, Form] = {}
        self._store = store
        self._index = index
        self._vocabularies = vocabularies
        self._context: zmq.asyncio.Context | None = None
        self._decoder = msgspec.msgpack.Decoder(Batch)
        self._tasks: dict[Source, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._of: dict[str, set[Source]] = {}
        self._sizes: dict[Source, int] = {}
        self._held = 0
        store.watch(self._follow)

    async def stop(self) -> None:
        """End every subscription; a context waits for ever for a socket that somebody still has."""
        for source in tuple(self._tasks):
            self._leave(source)
        self._of.clear()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def _follow(self, change: Change) -> None:
        for model in change.models if change.shape else ():
            self._adjust(model)

    def _adjust(self, model: str) -> None:
        pods = self._store.fleet.pods_of(model)
        wanted = {found for pod in pods if (found := self._source(pod.name, pod.epoch)) is not None}
        running = self._of.pop(model, set())
        for gone in running - wanted:
            self._leave(gone)
        kept = running & wanted
        for fresh in wanted - running:
            if len(self._tasks) < MAX_SUBSCRIPTIONS:
                self._tasks[fresh] = asyncio.create_task(self._serve(fresh))
                kept.add(fresh)
        if kept:
            self._of[model] = kept
        else:
            self.forms.pop(model, None)

    def _leave(self, source: Source) -> None:
        task = self._tasks.pop(source)
        task.cancel()
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _source(self, pod: str, epoch: int) -> Source | None:
        declared = self._store.declared.pods.get(pod)
        return _published(declared, epoch) if declared is not None and epoch else None

    async def _serve(self, source: Source) -> None:
        failures = 0
        while True:
            try:
                await self._hear(source)
            except UnsupportedError as error:
                log.info("kv_events_left_to_prediction", pod=source.pod, reason=str(error))
                return
            except _BROKEN as error:
                failures += 1
                metrics.KV_ERRORS.labels(type(error).__name__).inc()
                log.warning("kv_events_failed", pod=source.pod, reason=str(error), failures=failures)
            finally:
                self._forget(source)
            await asyncio.sleep(min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(failures, 10)))

    async def _hear(self, source: Source) -> None:
        vocabulary = await self._vocabulary(source)
        self._context = self._context or zmq.asyncio.Context()
        blocks, heard = self._begin(source), 0
        async with aclosing(batches(self._context, source.events, source.replay)) as payloads:
            async for payload in payloads:
                if payload is None:
                    metrics.KV_GAPS.inc()
                    blocks = self._begin(source)
                    continue
                self._absorb(source, blocks, payload, vocabulary)
                heard += 1
                if heard % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)

    async def _vocabulary(self, source: Source) -> Vocabulary:
        """The vocabulary, once the agent has one to tell."""
        while (state := self._store.states.get(source.pod)) is None or not state.vocabulary:  # noqa: ASYNC110
            await asyncio.sleep(_PATIENCE_S)
        found = await self._vocabularies.get(source.agent_url, state.vocabulary)
        self.forms[source.model] = found.form
        return found

    def _begin(self, source: Source) -> Blocks:
        self._forget(source)
        blocks = self._index.announce(source.key)
        metrics.KV_SUBSCRIPTIONS.set(len(self._index.announced))
        return blocks

    def _absorb(self, source: Source, blocks: Blocks, payload: bytes, vocabulary: Vocabulary) -> None:
        events = self._decoder.decode(payload).events
        absorb(blocks, events, vocabulary.words, lambda adapter, salt: self._seed(source.model, adapter, salt))
        self._resize(source, len(blocks))
        if len(blocks) > MAX_BLOCKS_OF_A_POD or self._held > MAX_BLOCKS:
            raise TooManyBlocksError(f"{len(blocks)} KV blocks, {self._held} of all pods: it is predicted for a while")

    def _seed(self, model: str, adapter: str | None, salt: str) -> int:
        """As the request path has it."""
        fleet = self._store.fleet
        served = fleet.served.get(adapter) if adapter is not None else None
        return seed(model, adapter, fleet.digest_of(served) if served is not None else "", salt)

    def _resize(self, source: Source, size: int) -> None:
        self._held += size - self._sizes.get(source, 0)
        self._sizes[source] = size
        metrics.KV_BLOCKS.set(self._held)

    def _forget(self, source: Source) -> None:
        self._held -= self._sizes.pop(source, 0)
        self._index.silence(source.key)
        metrics.KV_BLOCKS.set(self._held)
        metrics.KV_SUBSCRIPTIONS.set(len(self._index.announced))


def _published(pod: PodSnapshot, epoch: int) -> Source | None:
    events, replay = pod.kv_events or "", pod.kv_replay or ""
    if not pod.agent_url or not events.startswith(_SCHEMES):
        return None
    return Source(pod.name, epoch, pod.model, pod.agent_url, events, replay if replay.startswith(_SCHEMES) else "")
