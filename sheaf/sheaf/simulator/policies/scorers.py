"""Peers that read the engines: llm-d's weighted scorers over scraped metrics, Dynamo's cost over KV events."""

from __future__ import annotations

import math
from collections import defaultdict

from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Pods, Policy
from sheaf.simulator.policies.trees import History

Scores = list[float]


class Scraped:
    """Waiting requests and KV usage of each pod, as of the last scrape."""

    def __init__(self, interval_s: float) -> None:
        self._interval = interval_s
        self._at = -math.inf
        self.waiting: dict[str, int] = {}
        self.usage: dict[str, float] = {}
        self.running: dict[str, int] = {}
        self.adapters: dict[str, tuple[frozenset[str], int]] = {}

    def refresh(self, pods: Pods, now: float) -> None:
        """Scrape, if it is time."""
        if now - self._at < self._interval:
            return
        self._at = now
        for pod in pods:
            engine = pod.engine
            self.waiting[pod.name], self.usage[pod.name] = engine.waiting, engine.cache_usage
            active = frozenset(engine.adapters.running) | frozenset(engine.waiting_adapters)
            self.adapters[pod.name] = (active, engine.profile.max_loras)


class LlmD(Policy):
    """llm-d's default profile: queue 2, KV cache utilisation 2, approximate prefix 3, highest score, metrics 50 ms old;
    with `lora`, the affinity scorer that KServe adds (weight 4). The prefix index holds at most 256 blocks a prompt."""

    name = "llm-d"
    QUEUE, USAGE, PREFIX, LORA = 2.0, 2.0, 3.0, 4.0
    SCRAPE_S, BLOCKS_PER_PROMPT, BLOCKS = 0.05, 64, 31_250 // 4

    def __init__(self, seed: int = 0, *, lora: bool = False, precise: bool = False) -> None:
        super().__init__(seed)
        self._lora, self._precise = lora, precise
        self.metrics = Scraped(self.SCRAPE_S)
        self.history = History(self.BLOCKS)
        self.name = "llm-d" + ("-precise" if precise else "") + ("-lora" if lora else "")

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """The highest sum of weighted scores; ties at random."""
        self.metrics.refresh(pods, now)
        chain = flight.chain[: self.BLOCKS_PER_PROMPT]
        terms = [
            (self.QUEUE, queue_scores([self.metrics.waiting[pod.name] for pod in pods])),
            (self.USAGE, [1.0 - self.metrics.usage[pod.name] for pod in pods]),
            (self.PREFIX, self._prefix(flight, chain, pods)),
        ]
        if self._lora and flight.call.adapter:
            terms.append((self.LORA, [self._affinity(flight.call.adapter, pod) for pod in pods]))
        totals = [sum(weight * scores[place] for weight, scores in terms) for place in range(len(pods))]
        best = max(totals)
        chosen = self.random.choice([pod for pod, total in zip(pods, totals, strict=True) if total == best])
        self.history.add(chain, chosen.name, now)
        return chosen

    def _prefix(self, flight: Flight, chain: list[int], pods: Pods) -> Scores:
        if self._precise:
            return [pod.cached_tokens(flight.hashes) / flight.call.input_tokens for pod in pods]
        return [self.history.matched(chain, pod.name) / max(1, len(chain)) for pod in pods]

    def _affinity(self, adapter: str, pod: Pod[Flight]) -> float:
        active, slots = self.metrics.adapters[pod.name]
        if adapter in active:
            return 1.0
        return 0.8 if len(active) < slots else 0.0


def queue_scores(queues: list[int]) -> Scores:
    """(max - q) / (max - min), 1 where all are equal."""
    low, high = min(queues), max(queues)
    return [1.0 if high == low else (high - queue) / (high - low) for queue in queues]


class Dynamo(Policy):
    """NVIDIA Dynamo's KV router: the lowest prefill load and decode load in blocks, from exact KV events.

    cost = scale * max(active prefill + incoming - overlap, 0) / block + decode blocks. Active prefill is the uncached
    tokens sent there whose first token is not out, decode blocks those that its requests hold; the lowest wins.
    """

    name = "dynamo"
    SCALE = 1.0

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._prefill: defaultdict[str, int] = defaultdict(int)
        self._blocks: defaultdict[str, int] = defaultdict(int)

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """The lowest cost; ties at random."""
        overlaps = [pod.cached_tokens(flight.hashes) for pod in pods]
        costs = [self.cost(flight, pod, overlap) for pod, overlap in zip(pods, overlaps, strict=True)]
        best = min(costs)
        place = self.random.choice([place for place, cost in enumerate(costs) if cost == best])
        flight.note = [max(0, flight.call.input_tokens - overlaps[place]), self._held(flight, pods[place])]
        return pods[place]

    def cost(self, flight: Flight, pod: Pod[Flight], overlap: int) -> float:
        """In blocks."""
        size = pod.engine.profile.block_size
        prefill = max(0, self._prefill[pod.name] + flight.call.input_tokens - overlap)
        return self.SCALE * prefill / size + self._blocks[pod.name]

    def sent(self, flight: Flight, pod: Pod[Flight], now: float) -> None:
        """Count it on."""
        super().sent(flight, pod, now)
        self._prefill[pod.name] += flight.note[0]
        self._blocks[pod.name] += flight.note[1]

    def first_token(self, flight: Flight, now: float) -> None:  # noqa: ARG002
        """Its prefill is over."""
        self._prefilled(flight)

    def finished(self, flight: Flight, now: float, *, lost: bool = False) -> None:
        """Count it off."""
        super().finished(flight, now, lost=lost)
        self._prefilled(flight)
        if flight.pod is not None:
            self._blocks[flight.pod.name] -= flight.note[1]

    def _prefilled(self, flight: Flight) -> None:
        if flight.pod is not None:
            self._prefill[flight.pod.name] -= flight.note[0]
            flight.note[0] = 0

    def _held(self, flight: Flight, pod: Pod[Flight]) -> int:
        return -(-flight.call.input_tokens // pod.engine.profile.block_size)


class Oracle(Policy):
    """No peer: the longest match in the caches as they are, whatever the load; the least loaded where equal."""

    name = "oracle"

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """The best hit that can be had now."""
        return max(pods, key=lambda pod: (pod.cached_tokens(flight.hashes), -self.running[pod.name]))
