"""What all continued streams of a gateway share: bounds, turns, who streams from where, and what is counted."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sheaf_gateway.api.metrics import Metrics
from sheaf_gateway.continuation.bounds import MendingRules
from sheaf_gateway.continuation.journal import Purse
from sheaf_gateway.continuation.notice import Drains, Lengths, stays
from sheaf_gateway.continuation.pacing import Pacing
from sheaf_gateway.continuation.plan import Facts
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.view import Fleet, Pod

if TYPE_CHECKING:
    from sheaf_gateway.api.continuing import Continuing

_LOOK_S = 0.5
_DRAIN_S = 60.0
_PARSERS = ("--reasoning-parser", "--reasoning_parser")


class Mending:
    """The shared part of `Continuing`."""

    def __init__(
        self, rules: MendingRules, store: FleetStore, metrics: Metrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.rules = rules
        self.enabled = rules.max_continuations > 0
        self.purse = Purse(rules.max_journals)
        self.streams: dict[str, set[Continuing]] = {}
        self._store = store
        self._metrics = metrics
        self._loop = loop
        self._pacings: dict[str, Pacing] = {}
        self._turns: dict[tuple[str, int], Callable[[], None]] = {}
        self._lengths: dict[str, Lengths] = {}
        self._drains = Drains()
        self._looking = False
        store.listen(self._fleet_changed)

    # Who streams from which pod.

    def enter(self, stream: "Continuing") -> None:
        """A stream has begun, or goes on, perhaps from a pod that has to go."""
        self.streams.setdefault(stream.pod, set()).add(stream)
        if stream.pod in self._drains.ends:
            self._look_soon()

    def move(self, stream: "Continuing", pod: str) -> None:
        """A stream goes on from another pod."""
        self.leave(stream)
        stream.pod = pod
        self.enter(stream)

    def leave(self, stream: "Continuing") -> None:
        """A stream is over, or moves."""
        found = self.streams.get(stream.pod)
        if found is not None:
            found.discard(stream)
            if not found:
                del self.streams[stream.pod]

    def ended(self, model: str, tokens: int) -> None:
        """A stream ended well after so many tokens."""
        self._lengths.setdefault(model, Lengths()).observe(tokens)

    # Notices.

    def _fleet_changed(self, fleet: Fleet) -> None:
        models = self._store.declared.models
        self._lengths = {name: found for name, found in self._lengths.items() if name in models}
        draining = [pod for pods in fleet.pods.values() for pod in pods if pod.draining]
        told = [(pod.name, pod.uid, pod.deadline, self._drain_s(pod.model)) for pod in draining]
        self._drains.hear(told, time.time())
        self._look()

    def _drain_s(self, model: str) -> float:
        declared = self._store.declared.models.get(model)
        return _DRAIN_S if declared is None else declared.spec.drain_timeout

    def _look(self) -> None:
        """Decide for every stream of a pod that drains; again while there are any."""
        if not self._drains.ends:
            return
        pods = [pod for found in self._store.fleet.pods.values() for pod in found if pod.name in self._drains.ends]
        found = [pod for pod in pods if pod.name in self.streams]
        for pod in found:
            self._give_notice(pod, self._drains.ends[pod.name])
        if found:
            self._look_soon()

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._looking = False
        self._look()

    def _give_notice(self, pod: Pod, end: float) -> None:
        others = self._store.fleet.pods_of(pod.model)
        if not any(other.ready and not other.draining for other in others):
            return
        mean = self._lengths.get(pod.model, Lengths()).mean
        left = end - time.time()
        for stream in tuple(self.streams.get(pod.name, ())):
            if not stays(stream.progress(), mean, left, self.rules.lead_s):
                stream.notice()

    def facts(self, model: str) -> Facts:
        """What deciding needs of a Model's engines."""
        pods = [pod for pod in self._store.fleet.pods_of(model) if pod.ready]
        lengths = [pod.max_model_len for pod in pods if pod.max_model_len]
        plugin = bool(pods) and all(pod.continues for pod in pods)
        return Facts(min(lengths, default=0), plugin, self._parses(model), self.rules.max_replay)

    def _parses(self, model: str) -> bool:
        declared = self._store.declared.models.get(model)
        return declared is not None and any(arg.startswith(_PARSERS) for arg in declared.spec.engine.args)

    # Turns.

    def queue(self, model: str, turn: Callable[[], None], *, batch: bool) -> int:
        """Call `turn` when it may begin, never before this returns; the number is the place in the queue."""
        pacing = self._pacings.setdefault(model, Pacing())
        place = pacing.wait(batch=batch)
        self._turns[model, place] = turn
        self._loop.call_soon(self._call_in, model)
        return place

    def give_up(self, model: str, place: int) -> None:
        """The stream that waits there is gone."""
        self._turns.pop((model, place), None)
        self._pacings[model].leave(place)

    def started(self, model: str) -> None:
        """A continuation has begun to stream, or will not: another may start."""
        self._pacings[model].started()
        self._loop.call_soon(self._call_in, model)

    def waiting(self) -> Iterable[tuple[tuple[str, ...], float]]:
        """Streams that wait for their turn, by Model."""
        return [((model,), float(len(pacing))) for model, pacing in self._pacings.items()]

    def _call_in(self, model: str) -> None:
        pacing = self._pacings.get(model)
        if pacing is None:
            return
        most = self.rules.starting_per_pod * max(1, self._store.fleet.ready.get(model, 0))
        while (place := pacing.next(most)) is not None:
            self._turns.pop((model, place))()
        if not len(pacing) and not pacing.starting:
            del self._pacings[model]

    # What is counted.

    def continued(self, seconds: float) -> None:
        """A stream goes on after a gap."""
        self._metrics.continued.inc()
        self._metrics.continuation_gap.observe(seconds)

    def refused(self, reason: str) -> None:
        """A stream could not be continued."""
        self._metrics.not_continued.labels(reason).inc()
