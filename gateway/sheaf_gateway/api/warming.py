"""Replacements are warmed before they take requests: adapters loaded, and the prefixes computed that were hottest on
the pod that goes.

When a pod begins to drain, disappears or starts anew, what its replacement should know is chosen at once (see
`warming.choice`), while the requests are remembered. The next pod of the Model that becomes ready takes it over: it is
kept back from requests as long as another pod serves (`FleetStore.hold`), and is sent one request after the other, each
for one token, only while nothing waits there. Counts, tokens, milliseconds of prefill and time are bounded.
"""

import asyncio
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import structlog

from sheaf_gateway.api.asking import Asked
from sheaf_gateway.api.metrics import Metrics
from sheaf_gateway.api.records import Attempt, Record, Records
from sheaf_gateway.fleet.agents import AgentError
from sheaf_gateway.fleet.loading import AdapterLoader
from sheaf_gateway.fleet.store import Change, FleetStore
from sheaf_gateway.fleet.view import Pod, Served
from sheaf_gateway.proxy.errors import UpstreamError
from sheaf_gateway.proxy.exchange import Endpoint, Timeouts
from sheaf_gateway.proxy.upstream import Pool
from sheaf_gateway.routing.choose import Decision
from sheaf_gateway.routing.router import Router
from sheaf_gateway.warming.choice import Budget, Choice, Warm, choose
from sheaf_gateway.warming.recent import LEAST_BLOCKS, Recent, Seen
from sheaf_gateway.warming.request import one_token

log = structlog.get_logger(__name__)

_MOST_CHOICES = 64
_HOT_S = 600.0
_CLAIM_S = 1800.0
_LOOK_S = 0.05
_ANSWER = 2**20
_HEADERS = ((b"content-type", b"application/json"),)


class WarmingRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what one replacement is warmed with: requests (0: none is warmed), tokens, seconds; and the bytes of
    requests that are remembered for it."""

    requests: int = 16
    tokens: int = 65_536
    seconds: float = 10.0
    remembered: int = 32 * 2**20

    @property
    def budget(self) -> Budget:
        """What the choice must keep to."""
        return Budget(self.requests, self.tokens, self.seconds * 1000.0)


class _Left(NamedTuple):
    """What a pod that went has left for the next one."""

    at: float
    pod: str
    choice: Choice


class Warming:
    """Remembers, chooses and sends."""

    def __init__(
        self,
        rules: WarmingRules,
        *,
        store: FleetStore,
        router: Router,
        pool: Pool,
        loader: AdapterLoader,
        metrics: Metrics,
        records: Records,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self._store = store
        self._router = router
        self._pool = pool
        self._loader = loader
        self._metrics = metrics
        self._records = records
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._recent = Recent(rules.remembered, _HOT_S)
        self._known: dict[str, dict[str, tuple[str, int]]] = {}
        self._left: OrderedDict[str, deque[_Left]] = OrderedDict()
        self._numbers = itertools.count(1)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped = False
        store.watch(self._follow)

    def saw(self, asked: Asked, pod: str) -> None:
        """A request went to a pod."""
        ask, request = asked.ask, asked.request
        if len(ask.chain) >= LEAST_BLOCKS and asked.route.continues:
            seen = Seen(
                self._now(), pod, asked.route.target, asked.served.name, ask.digest, ask.chain, request.body, asked.salt
            )
            self._recent.add(seen)

    async def stop(self) -> None:
        """Give up what is under way."""
        self._stopped, tasks = True, tuple(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Who goes and who comes.

    def _follow(self, change: Change) -> None:
        now = self._now()
        self._recent.forget(now - _HOT_S)
        self._expire(now - _CLAIM_S)
        for model in change.models if change.shape else ():
            self._adjust(model, change.fleet.pods_of(model))

    def _adjust(self, model: str, pods: tuple[Pod, ...]) -> None:
        before, there = self._known.get(model, {}), {pod.name: pod for pod in pods}
        leaving = [name for name, key in before.items() if _leaves(key, there.get(name))]
        stay = {name: key for name, key in before.items() if name not in leaving}
        fresh = [pod for pod in pods if pod.ready and not pod.draining and pod.name not in stay]
        self._known[model] = {name: (there[name].uid, there[name].epoch or key[1]) for name, key in stay.items()}
        self._known[model] |= {pod.name: (pod.uid, pod.epoch) for pod in fresh}
        if not self._known[model]:
            del self._known[model]
        if leaving:
            self._part(model, leaving)
        for pod in fresh:
            self._welcome(pod)

    def _part(self, model: str, names: list[str]) -> None:
        """Choose what the replacements of these pods should know."""
        for name in names:
            if (task := self.tasks.get(name)) is not None:
                task.cancel()
        price, now = self._router.model(model).coefficients, self._now()
        for name, seen in self._recent.of(names).items():
            choice = choose(seen, price, self.rules.budget)
            told = {"requests": len(choice.warm), "tokens": choice.tokens, "saves_ms": round(choice.saves, 1)}
            if seen:
                log.info("warming_chosen", model=model, pod=name, met=len(seen), reason=choice.reason, **told)
            if choice.warm:
                self._leave(model, _Left(now, name, choice))

    def _leave(self, model: str, left: _Left) -> None:
        self._left.setdefault(model, deque()).append(left)
        if sum(map(len, self._left.values())) > _MOST_CHOICES:
            oldest = next(iter(self._left))
            self._left[oldest].popleft()
            if not self._left[oldest]:
                del self._left[oldest]

    def _expire(self, before: float) -> None:
        """Nobody came for it."""
        for model, waiting in tuple(self._left.items()):
            while waiting and waiting[0].at < before:
                waiting.popleft()
            if not waiting:
                del self._left[model]

    def _welcome(self, pod: Pod) -> None:
        left = self._claim(pod.model) if pod.name not in self.tasks else None
        if left is not None:
            task = self.tasks[pod.name] = self._loop.create_task(self._warm(pod, left))
            task.add_done_callback(lambda task: self._done(pod, left if task.cancelled() else None))

    def _claim(self, model: str) -> _Left | None:
        """What the pod that went first has left."""
        self._expire(self._now() - _CLAIM_S)
        waiting = self._left.pop(model, deque())
        found = waiting.popleft() if waiting else None
        if waiting:
            self._left[model] = waiting
        return found

    def _done(self, pod: Pod, unused: _Left | None) -> None:
        """Let requests in; what the pod did not live to be warmed with is the next one's, which may be itself."""
        del self.tasks[pod.name]
        if unused is not None:
            self._left.setdefault(pod.model, deque()).appendleft(unused)
        self._store.release(pod.name)
        if not self._stopped and pod.name in self._known.get(pod.model, ()):
            self._welcome(self._view(pod))

    # Sending.

    async def _warm(self, pod: Pod, left: _Left) -> None:
        self._store.hold(pod.name)
        began, counts, sent = self._now(), dict.fromkeys(("warmed", "failed", "gone", "late"), 0), []
        for place, warm in enumerate(left.choice.warm):
            remaining = began + self.rules.seconds - self._now()
            try:
                async with asyncio.timeout(remaining):
                    await self._nothing_waits(pod)
                    record = self._record(pod, warm)
                    sent.append(record.request_id)
                    result = await self._one(pod, warm, record)
            except TimeoutError:
                counts["late"] = len(left.choice.warm) - place
                break
            counts[result] += 1
        self._count(counts)
        seconds = round(self._now() - began, 3)
        log.info("pod_warmed", model=pod.model, pod=pod.name, after=left.pod, seconds=seconds, sent=sent, **counts)

    async def _nothing_waits(self, pod: Pod) -> None:
        """Return when no request waits for its first token there."""
        while self._router.ledger(pod.name).queued or self._view(pod).foreign_waiting:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)

    async def _one(self, pod: Pod, warm: Warm, record: Record) -> str:
        seen, attempt, began = warm.seen, record.attempts[0], self._now()
        served, body = self._served(pod, seen), one_token(warm.seen.body, warm.seen.salt)
        attempt.outcome = "gone"
        if served is None or body is None:
            return "gone"
        attempt.outcome = "failed"
        try:
            if not self._view(pod).holds(served.adapter, served.digest):
                attempt.loaded_adapter = True
                await self._loader.load(pod, served.name)
            record.status = await self._send(pod, seen.path, body)
        except (AgentError, UpstreamError) as error:
            log.info("warming_failed", pod=pod.name, served=served.name, reason=str(error))
            return "failed"
        if record.status != 200:
            return "failed"
        record.total_ms, attempt.outcome = (self._now() - began) * 1000.0, "ok"
        self._router.index.record(seen.chain, (pod.name, self._view(pod).epoch))
        self._metrics.warmed_tokens.inc(warm.tokens)
        return "warmed"

    async def _send(self, pod: Pod, path: str, body: bytes) -> int:
        seconds = self.rules.seconds
        timeouts = Timeouts(connect_s=seconds, first_byte_s=seconds, idle_s=seconds)
        endpoint = Endpoint.parse(pod.engine_url)
        async with self._pool.request(endpoint, "POST", path, _HEADERS, body, timeouts=timeouts) as response:
            await response.read(_ANSWER)
            return response.status

    def _served(self, pod: Pod, seen: Seen) -> Served | None:
        """The name that was asked for, as long as it stands for the same thing."""
        served = self._store.fleet.served.get(seen.served)
        same = served is not None and served.model == pod.model and served.digest == seen.digest
        return served if same else None

    def _view(self, pod: Pod) -> Pod:
        found = self._store.fleet.pods_of(pod.model)
        return next((one for one in found if one.name == pod.name), pod)

    def _record(self, pod: Pod, warm: Warm) -> Record:
        """Something to find under `/sheaf/v1/decisions`."""
        seen, number = warm.seen, next(self._numbers)
        served = self._store.fleet.served.get(seen.served)
        decision = Decision(pod.name, "Normal", (), self._router.model(pod.model).coefficients)
        adapter = served.adapter if served is not None else None
        record = Record(
            f"warm-{pod.name}-{number}", seen.served, pod.model, adapter, "", seen.path, time.time(), len(seen.body),
            [Attempt(decision, self._now())],
        )  # fmt: skip
        self._records.add(record)
        return record

    def _count(self, counts: dict[str, int]) -> None:
        for result, count in counts.items():
            if count:
                self._metrics.warmed.labels(result).inc(count)


def _leaves(key: tuple[str, int], pod: Pod | None) -> bool:
    """Whether a pod that took requests does so no longer, or with empty caches."""
    if pod is None or pod.draining or pod.uid != key[0]:
        return True
    return bool(pod.epoch and key[1]) and pod.epoch != key[1]
