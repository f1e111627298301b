"""What all continued streams of a gateway share: bounds, turns, who streams from where, and what is counted."""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from sheaf_gateway.api.metrics import Metrics
from sheaf_gateway.continuation.journal import Purse
from sheaf_gateway.continuation.pacing import Pacing
from sheaf_gateway.continuation.plan import Facts
from sheaf_gateway.fleet.store import FleetStore

if TYPE_CHECKING:
    from sheaf_gateway.api.continuing import Continuing

_PARSERS = ("--reasoning-parser", "--reasoning_parser")


class MendingRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds: moves of one stream (0: streams are never continued), seconds that one waits for a pod, bytes of one
    journal and of all, tokens generated again, continuations that start at once for each ready pod."""

    max_continuations: int = 8
    max_wait_s: float = 30.0
    max_journal: int = 2**20
    max_journals: int = 256 * 2**20
    max_replay: int = 1024
    starting_per_pod: int = 16


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

    # Who streams from which pod.

    def enter(self, stream: "Continuing") -> None:
        """A stream has begun."""
        self.streams.setdefault(stream.pod, set()).add(stream)

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
