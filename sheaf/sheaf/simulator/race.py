"""A routing policy against a trace on pods that are there from the start: no operator, no admission, nothing fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sheaf_engine.timing import Adapter, TimingProfile

from sheaf.simulator.calls import GATEWAY_TOKENS, Call, block_hashes
from sheaf.simulator.clock import Clock
from sheaf.simulator.flights import Flight
from sheaf.simulator.outcome import Outcome
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Policy


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
        flight = Flight(self._number, call, hashes, list(chain))
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
