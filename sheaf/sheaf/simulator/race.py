"""A routing policy against a trace on pods that are there from the start: no operator, no admission, nothing fails."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sheaf_engine.timing import Adapter, TimingProfile

from sheaf.simulator.calls import GATEWAY_TOKENS, Call, block_hashes
from sheaf.simulator.clock import Clock
from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Policy


@dataclass(slots=True)
class Outcome:
    """What callers saw, one entry a request in order of its end. Times are seconds.

    Attributes:
        arrival: when it came.
        ttft: time to first token.
        tpot: time for each further token; 0 where there was none.
        prompt: prompt tokens.
        cached: prompt tokens found in the cache.
        output: tokens generated.
    """

    arrival: array[float] = field(default_factory=lambda: array("d"))
    ttft: array[float] = field(default_factory=lambda: array("d"))
    tpot: array[float] = field(default_factory=lambda: array("d"))
    prompt: array[int] = field(default_factory=lambda: array("l"))
    cached: array[int] = field(default_factory=lambda: array("l"))
    output: array[int] = field(default_factory=lambda: array("l"))

    def note(self, flight: Flight, now: float) -> None:
        """A request is done."""
        call = flight.call
        further = call.output_tokens - 1
        self.arrival.append(call.arrival)
        self.ttft.append(flight.first_at - call.arrival)
        self.tpot.append((now - flight.first_at) / further if further else 0.0)
        self.prompt.append(call.input_tokens)
        self.cached.append(flight.cached)
        self.output.append(call.output_tokens)


class Race:
    """One policy, one trace, some equal pods."""

    def __init__(
        self, policy: Policy, pods: int, profile: TimingProfile, ranks: Mapping[str, int] | None = None
    ) -> None:
        self.clock = Clock()
        self.policy = policy
        self.outcome = Outcome()
        self._sizes = (profile.block_size, GATEWAY_TOKENS)
        self._adapters = {name: Adapter(name, rank) for name, rank in (ranks or {}).items()}
        self._number = 0
        self.pods = [
            Pod(f"pod-{index}", "model", profile, self.clock, self._cached, self._first, self._done)
            for index in range(pods)
        ]

    def run(self, calls: Iterable[Call]) -> Outcome:
        """All of it, to the last token."""
        self.clock.feed(calls, self._arrive)
        self.clock.run()
        return self.outcome

    def _arrive(self, call: Call) -> None:
        hashes, chain = block_hashes(call, call.tenant, self._sizes)
        self._number += 1
        flight = Flight(self._number, call, hashes, chain)
        now = self.clock.now
        pod = self.policy.choose(flight, self.pods, now)
        flight.pod, flight.sent_at = pod, now
        self.policy.sent(flight, pod, now)
        adapter = None if call.adapter is None else self._adapters[call.adapter]
        pod.submit(flight, call.input_tokens, call.output_tokens, hashes, adapter)

    def _cached(self, flight: Flight, tokens: int) -> None:
        flight.cached = tokens

    def _first(self, flight: Flight) -> None:
        flight.first_at = self.clock.now
        self.policy.first_token(flight, self.clock.now)

    def _done(self, flight: Flight) -> None:
        self.policy.finished(flight, self.clock.now)
        self.outcome.note(flight, self.clock.now)
