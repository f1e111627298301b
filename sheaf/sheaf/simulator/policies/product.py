"""Sheaf's own routing, unchanged: the one place where the simulator meets the gateway's routing room.

Pods are shown to it as the gateway's fleet would show them: residency and load as agents report them, which is once a
`REPORT_S`. Where it is not alone, that is how it sees what it was not told of. Of `MANY` pods and more only those are
shown that could be chosen (see `shortlist`), unless it hears the engines' KV events (see `events`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sheaf_gateway.admission.expecting import expected
from sheaf_gateway.admission.terms import Work
from sheaf_gateway.fleet.view import Pod as PodView
from sheaf_gateway.routing.cost import Coefficients
from sheaf_gateway.routing.ledger import Ticket
from sheaf_gateway.routing.router import Ask, Capacity, Router
from sheaf_gateway.routing.sessions import Counted, session_key

from sheaf.simulator.calls import BYTES_PER_TOKEN, Call, root
from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Pods, Policy
from sheaf.simulator.policies.events import listen
from sheaf.simulator.policies.shortlist import Shortlist, WatchedIndex

REPORT_S = 1.0
MANY = 24
AGENT = "http://agent"
TALKATIVE = Coefficients(silence_per_ms=0.0)


class Product(Policy):
    """The gateway's Router; `alone` says that nobody else sends requests to the pods, `hears` that engines' KV events
    reach it: else it predicts what they hold."""

    name = "sheaf"

    def __init__(self, seed: int = 0, *, alone: bool = True, many: int = MANY, hears: bool = False) -> None:
        super().__init__(seed)
        self.router = Router(prior=TALKATIVE)
        self.router.index = self._index = WatchedIndex()
        self._alone, self._many, self._hears = alone, many, hears
        self._views: dict[str, tuple[float, PodView]] = {}
        self._seen: dict[str, _Seen] = {}
        self._crowds: dict[str, _Crowd] = {}
        self._asks: dict[int, Ask] = {}

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """As the gateway does."""
        call = flight.call
        if call.model not in self.router.capacities:
            self.router.capacities[call.model] = _capacity(pods[0])
        if self._hears:
            listen(self._index, pods)
        ask = Ask(
            request_id=str(flight.number),
            model=call.model,
            adapter=call.adapter,
            chain=flight.chain,
            prompt_bytes=call.input_tokens * BYTES_PER_TOKEN,
            exact=self._hears,
            session=_session(call) if call.named else 0,
        )
        if ask.session:
            self._asks[flight.number] = ask
        places, views = self._shown(ask, pods, now)
        decision = self.router.decide(ask, views, now)
        place = next((place for place, view in enumerate(views) if view.name == decision.pod), 0)
        flight.note = self.router.sent(ask, decision, views[place], now)
        self._stir(flight.note)
        return pods[place if places is None else places[place]]

    def expected(self, flight: Flight, pods: Pods) -> Work:
        """As the gateway's door is told."""
        call, crowd = flight.call, self._crowds.get(flight.call.model)
        if crowd is not None and crowd.pods is pods:
            depth = next((depth for depth, _ in self._index.holding(flight.chain)), 0)
        else:
            depth = max(self._index.match(flight.chain, [(pod.name, 0) for pod in pods]).values(), default=0)
        return expected(float(call.input_tokens), flight.chain, depth, self.router.model(call.model).coefficients)

    def uncached(self, flight: Flight) -> float:
        """As the Router predicted it."""
        ticket: Ticket = flight.note
        return ticket.tokens

    def first_token(self, flight: Flight, now: float) -> None:
        """A streamed answer began."""
        ticket: Ticket = flight.note
        self.router.answered(ticket, now, streamed=True)
        self._stir(ticket)

    def finished(self, flight: Flight, now: float, *, lost: bool = False) -> None:
        """It is over."""
        super().finished(flight, now, lost=lost)
        self.close(flight, flight.note, now, lost=lost)

    def close(self, flight: Flight, ticket: Ticket, now: float, *, lost: bool) -> None:
        """An attempt is over."""
        ask = self._asks.pop(flight.number, None)
        if ask is not None and not lost:
            counted = Counted(flight.call.output_tokens, flight.call.input_tokens, flight.cached)
            self.router.turned(ask, (ticket.pod, ticket.epoch), counted, now)
        if lost:
            self.router.failed(ticket, now)
        self.router.finished(ticket)
        self._stir(ticket)

    def fleet_changed(self, pods: Pods, now: float) -> None:
        """Forget what is gone."""
        self._views = {pod.name: self._views[pod.name] for pod in pods if pod.name in self._views}
        self.router.keep([self._view(pod, pod.model, now) for pod in pods])
        self._crowds.clear()
        for seen in self._seen.values():
            seen.pods = ()

    def _shown(self, ask: Ask, pods: Pods, now: float) -> tuple[list[int] | None, Sequence[PodView]]:
        """Views to decide by, and the places of their pods; None: they are of all."""
        if self._alone and len(pods) >= self._many:
            crowd = self._crowd(ask.model, pods, now)
            names = crowd.list.names(ask, self.router.model(ask.model).coefficients, now)
            if names is not None:
                if ask.session:
                    last = self.router.sessions.pods(ask.session)
                    names = list({*names, *(name for name in last if name in crowd.places)})
                places = sorted([crowd.places[name] for name in names])
                return places, [self._views[pods[place].name][1] for place in places]
        return None, self._all(ask.model, pods, now)

    def _crowd(self, model: str, pods: Pods, now: float) -> _Crowd:
        """The many pods of a Model as they are shown now."""
        crowd = self._crowds.get(model)
        if crowd is None or crowd.pods is not pods:
            crowd = self._crowds[model] = _Crowd(pods, Shortlist(self._index, self.router.capacities[model]))
            self._index.watch(crowd.places)
            crowd.stirred.update(crowd.places)
            for pod in pods:
                self._view(pod, model, now)
            crowd.due.extend(sorted((self._views[pod.name][0], place) for place, pod in enumerate(pods)))
        due = crowd.due
        while now - due[0][0] >= REPORT_S:
            pod = pods[due.popleft()[1]]
            self._view(pod, model, now)
            due.append((self._views[pod.name][0], crowd.places[pod.name]))
            crowd.stirred.add(pod.name)
        for name in crowd.stirred:
            crowd.list.put(self._views[name][1], self.router.ledger(name))
        crowd.stirred.clear()
        return crowd

    def _stir(self, ticket: Ticket) -> None:
        """What is known of a pod changed."""
        crowd = self._crowds.get(ticket.model)
        if crowd is not None and ticket.pod in crowd.places:
            crowd.stirred.add(ticket.pod)

    def _all(self, model: str, pods: Pods, now: float) -> tuple[PodView, ...]:
        """The views of all pods: the same tuple as before while none of them is another."""
        seen = self._seen.get(model)
        if seen is not None and seen.pods is pods and now - seen.oldest < REPORT_S:
            return seen.views
        views = tuple([self._view(pod, model, now) for pod in pods])
        if seen is not None and seen.views == views:
            views = seen.views
        self._seen[model] = _Seen(pods, views, min(self._views[pod.name][0] for pod in pods))
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


class _Seen:
    """The views of all pods of a Model, and when the oldest of them was taken."""

    __slots__ = ("oldest", "pods", "views")

    def __init__(self, pods: Pods, views: tuple[PodView, ...], oldest: float) -> None:
        self.pods, self.views, self.oldest = pods, views, oldest


class _Crowd:
    """Many pods of one Model: who could be chosen, when each reports, and who changed since the last choice."""

    __slots__ = ("due", "list", "places", "pods", "stirred")

    def __init__(self, pods: Pods, shortlist: Shortlist) -> None:
        self.pods, self.list = pods, shortlist
        self.places = {pod.name: place for place, pod in enumerate(pods)}
        self.due: deque[tuple[float, int]] = deque()
        self.stirred: set[str] = set()


def _session(call: Call) -> int:
    """The session as a caller's header would name it."""
    return session_key(root(call.model, call.adapter, call.tenant), b"%d" % call.session)


def _capacity(pod: Pod[Flight]) -> Capacity:
    profile = pod.engine.profile
    return Capacity(slots=profile.max_loras, kv_tokens=profile.num_blocks * profile.block_size)
