"""Peers with a prefix structure of their own: sglang's cache_aware, AIBrix's prefix-cache, production-stack's
prefixaware, llm-d's approximate prefix scorer, Preble's E2.

They hash the text, here as the gateway's chain of 64-token blocks (256 characters). Where a peer's blocks are smaller
the difference is below one block a prompt.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, defaultdict, deque

from sheaf.simulator.calls import GATEWAY_TOKENS
from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Pods, Policy, least


class History:
    """Blocks that each pod was sent, least recently used first, at most `most` for each; a hole ends a match."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._blocks: defaultdict[str, OrderedDict[int, float]] = defaultdict(OrderedDict)

    def matched(self, chain: list[int], pod: str) -> int:
        """Leading blocks that the pod was sent."""
        blocks = self._blocks[pod]
        for index, block in enumerate(chain):
            if block not in blocks:
                return index
        return len(chain)

    def add(self, chain: list[int], pod: str, now: float) -> None:
        """The pod was sent these."""
        blocks = self._blocks[pod]
        for block in reversed(chain):
            blocks[block] = now
            blocks.move_to_end(block)
        while len(blocks) > self._most:
            blocks.popitem(last=False)

    def expire(self, before: float) -> None:
        """Forget what was sent before that time."""
        for blocks in self._blocks.values():
            while blocks and next(iter(blocks.values())) < before:
                blocks.popitem(last=False)


class CacheAware(Policy):
    """sglang's cache_aware: where loads differ by more than 64 and 1.5 times, the least loaded; else the longest match
    above 0.3 of the prompt; else the least loaded. Its tree holds 2**24 characters a worker by default here, evicted
    by age.
    """

    name = "sglang-cache-aware"
    ABSOLUTE, RELATIVE, MATCH = 64, 1.5, 0.3
    BLOCKS = 2**24 // 256

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.tree = History(self.BLOCKS)

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """By balance, by match, or by load."""
        loads = [self.running[pod.name] for pod in pods]
        if max(loads) - min(loads) > self.ABSOLUTE and max(loads) > self.RELATIVE * min(loads):
            chosen = least(pods, self.running)
        else:
            matches = [self.tree.matched(flight.chain, pod.name) for pod in pods]
            best = max(matches)
            hit = best * GATEWAY_TOKENS > self.MATCH * flight.call.input_tokens
            chosen = pods[matches.index(best)] if hit else least(pods, self.running)
        self.tree.add(flight.chain, chosen.name, now)
        return chosen


class PrefixCache(Policy):
    """AIBrix's prefix-cache: above an imbalance of 8 requests only the least loaded count; else the highest share
    matched among pods with at most mean + 1 sigma requests; else least request. 20 minutes to live."""

    name = "aibrix-prefix-cache"
    IMBALANCE, TTL_S, BLOCKS = 8, 1200.0, 200_000

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.table = History(self.BLOCKS)

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """By imbalance, then by match within the deviation."""
        self.table.expire(now - self.TTL_S)
        chosen = self._chosen(flight, pods)
        self.table.add(flight.chain, chosen.name, now)
        return chosen

    def _chosen(self, flight: Flight, pods: Pods) -> Pod[Flight]:
        loads = [self.running[pod.name] for pod in pods]
        if max(loads) - min(loads) > self.IMBALANCE:
            return least(pods, self.running)
        bound = statistics.fmean(loads) + statistics.pstdev(loads)
        matches = [(self.table.matched(flight.chain, pod.name), pod) for pod in pods]
        usable = [(match, pod) for match, pod in matches if match and self.running[pod.name] <= bound]
        if not usable:
            return least(pods, self.running)
        best = max(match for match, _ in usable)
        return least([pod for match, pod in usable if match == best], self.running)


class PrefixAware(Policy):
    """production-stack's prefixaware: random among the longest matches; no load, no adapter, no eviction."""

    name = "prod-stack-prefix"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._seen: defaultdict[int, set[str]] = defaultdict(set)

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """Walk down while anybody matches."""
        names = {pod.name for pod in pods}
        for block in flight.chain:
            kept = names & self._seen[block]
            if not kept:
                break
            names = kept
        chosen = self.random.choice([pod for pod in pods if pod.name in names])
        for block in flight.chain:
            self._seen[block].add(chosen.name)
        return chosen


class Preble(Policy):
    """Preble's E2: exploit where more of the prompt is shared than new, the least loaded of those who share it; else
    explore: the lowest load and eviction cost.

    Load over a window of 3 minutes is the prefill time missed and, for each request under way, the mean output times
    the median TPOT; eviction cost the prefill time of the share of the window's blocks that would be pushed out.
    Costs are fitted to the pool by `prefill_s` (AIBrix's port has another GPU's built in).
    """

    name = "preble-e2"
    WINDOW_S = 180.0

    def __init__(self, seed: int = 0, *, prefill_s: float = 4e-5, tpot_s: float = 0.02, blocks: int = 6250) -> None:
        super().__init__(seed)
        self.tree = History(blocks)
        self._prefill_s, self._tpot_s, self._blocks = prefill_s, tpot_s, blocks
        self._window: defaultdict[str, deque[tuple[float, float, int]]] = defaultdict(deque)
        self._missed: defaultdict[str, float] = defaultdict(float)
        self._outputs: deque[int] = deque(maxlen=200)

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """Exploit or explore."""
        matches = [self.tree.matched(flight.chain, pod.name) for pod in pods]
        best = max(matches)
        shared = best * GATEWAY_TOKENS
        if shared > flight.call.input_tokens - shared:
            holders = [pod for match, pod in zip(matches, pods, strict=True) if match == best]
            chosen = min(holders, key=lambda pod: self.load(pod, now))
        else:
            chosen = min(pods, key=lambda pod: self.load(pod, now) + self._evicted(pod, flight))
        match = matches[pods.index(chosen)]
        missed = max(0, flight.call.input_tokens - match * GATEWAY_TOKENS) * self._prefill_s
        self._window[chosen.name].append((now, missed, len(flight.chain)))
        self._missed[chosen.name] += missed
        self.tree.add(flight.chain, chosen.name, now)
        return chosen

    def load(self, pod: Pod[Flight], now: float) -> float:
        """Seconds of work of the window, and of what runs."""
        window = self._window[pod.name]
        while window and window[0][0] < now - self.WINDOW_S:
            self._missed[pod.name] -= window.popleft()[1]
        output = statistics.fmean(self._outputs) if self._outputs else 100.0
        return self._missed[pod.name] + self.running[pod.name] * output * self._tpot_s

    def _evicted(self, pod: Pod[Flight], flight: Flight) -> float:
        held = sum(blocks for _, _, blocks in self._window[pod.name])
        over = min(len(flight.chain), max(0, held + len(flight.chain) - self._blocks))
        return over * GATEWAY_TOKENS * self._prefill_s

    def finished(self, flight: Flight, now: float, *, lost: bool = False) -> None:
        """Remember the length."""
        super().finished(flight, now, lost=lost)
        self._outputs.append(flight.call.output_tokens)
