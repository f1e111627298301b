"""Several gateways before the same pods, each with a Router of its own: what their disagreement costs.

Every request reaches one gateway drawn at random, as a load balancer or a shared port spreads them. With a `delay`
each tells the others of its requests by the gateway's own gossip, batch by batch: what happens is gathered for
`FLUSH_S` and heard `delay` later. Without, each knows of the others only what agents report once a `REPORT_S`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.gossip.hearing import Hearing
from sheaf_gateway.gossip.telling import Teller
from sheaf_gateway.gossip.wire import decode

from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Pods, Policy
from sheaf.simulator.policies.product import Product

FLUSH_S = 0.005

_Due = tuple[float, int, Callable[[float], None]]


class Gateways(Policy):
    """So many gateways; `delay` in seconds, None: they do not speak."""

    name = "sheaf-gateways"

    def __init__(self, seed: int = 0, *, count: int = 2, delay: float | None = 0.001) -> None:
        super().__init__(seed)
        self.gateways = [Product(seed, alone=False) for _ in range(count)]
        self._delay = delay
        self._due: list[_Due] = []
        self._order = 0
        self._now = 0.0
        self._tellers: list[Teller] = []
        self._hearings: list[Hearing] = []
        if delay is not None:
            self._connect()

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """By the gateway that it reaches."""
        self._catch_up(now)
        place = self.random.randrange(len(self.gateways))
        pod = self.gateways[place].choose(flight, pods, now)
        flight.note = place, flight.note
        return pod

    def first_token(self, flight: Flight, now: float) -> None:
        """The gateway that sent it hears of it."""
        self._catch_up(now)
        place, ticket = flight.note
        self.gateways[place].router.answered(ticket, now, streamed=True)

    def finished(self, flight: Flight, now: float, *, lost: bool = False) -> None:
        """The gateway that sent it hears of it."""
        self._catch_up(now)
        super().finished(flight, now, lost=lost)
        place, ticket = flight.note
        self.gateways[place].close(flight, ticket, now, lost=lost)

    def fleet_changed(self, pods: Pods, now: float) -> None:
        """All of them learn of it."""
        for gateway in self.gateways:
            gateway.fleet_changed(pods, now)

    def _connect(self) -> None:
        for place, gateway in enumerate(self.gateways):
            admission = Admission()
            teller = Teller(place + 1, partial(self._later, FLUSH_S, partial(self._flush, place)))
            gateway.router.teller = teller
            self._tellers.append(teller)
            self._hearings.append(Hearing(place + 1, gateway.router, admission, silence_s=float("inf")))

    def _flush(self, place: int, at: float) -> None:
        for data in self._tellers[place].flush(at):
            self._later(self._delay or 0.0, partial(self._hear, place, data))

    def _hear(self, speaker: int, data: bytes, now: float) -> None:
        batch = decode(data)
        for place, hearing in enumerate(self._hearings):
            if place != speaker:
                hearing.take(batch, now)

    def _later(self, seconds: float, action: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._due, (self._now + seconds, self._order, action))

    def _catch_up(self, now: float) -> None:
        """Nobody looks in between, so what was due is worked in when somebody does, each thing at its own time."""
        while self._due and self._due[0][0] <= now:
            self._now, _, action = heapq.heappop(self._due)
            action(self._now)
        self._now = now
