"""Sheaf's own routing, unchanged: the one place where the simulator meets the gateway's routing room.

Pods are shown to it as the gateway's fleet would show them: residency and load as agents report them, which is once a
`REPORT_S`. Where it is not alone, that is how it sees what it was not told of.
"""

from __future__ import annotations

from sheaf_gateway.fleet.view import Pod as PodView
from sheaf_gateway.routing.ledger import Ticket
from sheaf_gateway.routing.router import Ask, Capacity, Router

from sheaf.simulator.calls import BYTES_PER_TOKEN
from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Pods, Policy

REPORT_S = 1.0
AGENT = "http://agent"


class Product(Policy):
    """The gateway's Router; `alone` says that nobody else sends requests to the pods."""

    name = "sheaf"

    def __init__(self, seed: int = 0, *, alone: bool = True) -> None:
        super().__init__(seed)
        self.router = Router()
        self._alone = alone
        self._views: dict[str, tuple[float, PodView]] = {}
        self._seen: dict[str, tuple[PodView, ...]] = {}

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """As the gateway does."""
        call = flight.call
        if call.model not in self.router.capacities:
            self.router.capacities[call.model] = _capacity(pods[0])
        ask = Ask(
            request_id=str(flight.number),
            model=call.model,
            adapter=call.adapter,
            chain=flight.chain,
            prompt_bytes=call.input_tokens * BYTES_PER_TOKEN,
        )
        views = self._all(call.model, pods, now)
        decision = self.router.decide(ask, views, now)
        place = next((place for place, view in enumerate(views) if view.name == decision.pod), 0)
        flight.note = self.router.sent(ask, decision, views[place], now)
        return pods[place]

    def first_token(self, flight: Flight, now: float) -> None:
        """A streamed answer began."""
        ticket: Ticket = flight.note
        self.router.answered(ticket, now, streamed=True)

    def finished(self, flight: Flight, now: float, *, lost: bool = False) -> None:
        """It is over."""
        super().finished(flight, now, lost=lost)
        self.close(flight.note, now, lost=lost)

    def close(self, ticket: Ticket, now: float, *, lost: bool) -> None:
        """An attempt is over."""
        if lost:
            self.router.failed(ticket, now)
        self.router.finished(ticket)

    def fleet_changed(self, pods: Pods, now: float) -> None:
        """Forget what is gone."""
        self._views = {pod.name: self._views[pod.name] for pod in pods if pod.name in self._views}
        self.router.keep([self._view(pod, pod.model, now) for pod in pods])

    def _all(self, model: str, pods: Pods, now: float) -> tuple[PodView, ...]:
        """The views of all pods: the same tuple as before while none of them is another."""
        views, before = tuple([self._view(pod, model, now) for pod in pods]), self._seen.get(model)
        if before is not None and before == views:
            return before
        self._seen[model] = views
        return views

    def _view(self, pod: Pod[Flight], model: str, now: float) -> PodView:
        known = self._views.get(pod.name)
        if known is not None and now - known[0] < REPORT_S:
            return known[1]
        engine = pod.engine
        own = engine.running + engine.waiting if self._alone else self.router.ledger(pod.name).running
        view = PodView(
            name=pod.name,
            model=model,
            engine_url="http://engine",
            agent_url=AGENT,
            resident=dict.fromkeys(engine.adapters.in_host_memory, ""),
            foreign_running=max(0, engine.running - own),
            foreign_waiting=max(0, engine.waiting - max(0, own - engine.running)),
            kv_usage=engine.cache_usage,
        )
        self._views[pod.name] = (now, view)
        return view


def _capacity(pod: Pod[Flight]) -> Capacity:
    profile = pod.engine.profile
    return Capacity(slots=profile.max_loras, kv_tokens=profile.num_blocks * profile.block_size)
