"""Sheaf's own admission, unchanged: the one place where the simulator meets the gateway's admission room.

It is told what the gateway tells it: how many requests the pods take by what engines report, what a request that waits
is expected to take, what its pod has of its prompt, what it has produced so far, and how it ended. The tokens of
streams are billed when somebody asks for a place, in the gateway's portions of `BILL_EVERY`, at most once in `BILL_S`;
where nobody shares pods with another tenant, or shares are not kept, only at the end, for nothing depends on it before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from sheaf_crds import SLO, AutoscalingPolicy, Model
from sheaf_gateway.admission.admission import Admission, Admit, Answer, Reject, Wait
from sheaf_gateway.admission.ending import Ending, Usage, settle
from sheaf_gateway.admission.limits import ScopedRate
from sheaf_gateway.admission.promised import promise, terms
from sheaf_gateway.admission.terms import Ask, Measure, Terms
from sheaf_gateway.fleet.view import Promise, Rate, availability

from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.slots import Slots

MAX_INFLIGHT = 256
BILL_EVERY = 8
BILL_S = 0.25

Engines = Callable[[str], Iterable[Pod[Flight]]]


class Door:
    """Admission for all Models of a fleet.

    Args:
        models: by name.
        slos: by name.
        policies: names of the AutoscalingPolicies that exist.
        engines: the engines of a Model that serve, whether they take requests or not.
        max_inflight: requests at once on a ready pod at most, as the gateway's configuration has it.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        slos: Mapping[str, SLO],
        policies: Mapping[str, AutoscalingPolicy],
        engines: Engines,
        max_inflight: int = MAX_INFLIGHT,
    ) -> None:
        self.admission = Admission()
        self.slots = Slots(max_inflight)
        self._desks = {name: _Desk(model, slos, policies) for name, model in models.items()}
        self._engines = engines
        self._waiting: dict[str, Flight] = {}

    def knock(self, flight: Flight, ready: int, pods: int, measure: Measure | None, now: float) -> Answer:
        """A request comes to a Model with so many pods, of which so many take requests."""
        desk = self._desks[flight.call.model]
        desk.tenants.add(flight.call.tenant)
        self._bill(flight.call.model, now)
        ask = flight.ask = self._ask(flight, desk, ready, pods, now)
        answer = self.admission.decide(ask, now, measure)
        if isinstance(answer, Wait):
            self._waiting[ask.request_id] = flight
        elif isinstance(answer, Admit):
            flight.admitted_at = now
        return answer

    def routed(self, flight: Flight, uncached: float | None) -> None:
        """A request goes to a pod that has all but so many tokens of its prompt; None: nobody knows."""
        if uncached is not None and flight.ask.terms.policy != "None":
            self.admission.routed(flight.ask, uncached)

    def leave(self, flight: Flight, now: float, *, well: bool = True) -> None:
        """An admitted request is over: it was answered, or broken off."""
        call, began = flight.call, flight.admitted_at
        usage = Usage(call.input_tokens, call.output_tokens, flight.found)
        first_s = flight.first_at - began if flight.first_at else None
        over = Ending(usage, call.output_tokens, call.arrival, now, now - began, first_s, well, well)
        settle(self.admission, flight.ask, over, now)

    def called_in(self, model: str, now: float) -> Iterator[Flight]:
        """Those who waited and may enter now."""
        if not self.admission.waiting(model):
            return
        self._bill(model, now)
        slots = self.slots.of(model, now)
        while (ask := self.admission.next_waiter(model, slots, now)) is not None:
            flight = self._waiting.pop(ask.request_id)
            flight.admitted_at = now
            yield flight

    def expire(self, flight: Flight, now: float) -> Reject | None:
        """The time of a request is up: what it is told where it still waits."""
        if self._waiting.pop(flight.ask.request_id, None) is None:
            return None
        return self.admission.expire(flight.ask, now)

    def displaced(self, ask: Ask) -> Flight:
        """The request that made room for another."""
        return self._waiting.pop(ask.request_id)

    def waiting(self) -> set[str]:
        """The Models for which somebody waits."""
        return {flight.call.model for flight in self._waiting.values()}

    def _bill(self, model: str, now: float) -> None:
        """Charge tenants for what their streams have produced so far."""
        desk = self._desks[model]
        if now < desk.billed_at + BILL_S or not desk.shared:
            return
        desk.billed_at = now
        for pod in self._engines(model):
            for flight, tokens in pod.produced():
                if portions := (flight.kept + tokens) // BILL_EVERY:
                    self.admission.produced(flight.ask, float(portions * BILL_EVERY))

    def _ask(self, flight: Flight, desk: _Desk, ready: int, pods: int, now: float) -> Ask:
        call, promised = flight.call, desk.promise
        return Ask(
            request_id=str(flight.number),
            model=call.model,
            availability=availability(desk.declared, ready, pods),
            slots=self.slots.of(call.model, now),
            tenant=call.tenant,
            batch=not desk.terms.interactive,
            terms=desk.terms,
            scopes=_scopes(promised, call.tenant),
            tokens=float(call.input_tokens + call.output_tokens),
            prompt=float(call.input_tokens),
            max_queue=promised.max_queue,
            max_wait=promised.max_wait,
        )


class _Desk:
    """What is the same for every request of a Model, who has asked for it, and when streams were billed last."""

    __slots__ = ("billed_at", "declared", "promise", "tenants", "terms")

    def __init__(self, model: Model, slos: Mapping[str, SLO], policies: Mapping[str, AutoscalingPolicy]) -> None:
        slo = slos.get(model.spec.slo_ref.name) if model.spec.slo_ref else None
        ref = model.spec.autoscaling_policy_ref
        self.promise = promise(slo) if slo is not None else Promise()
        self.terms: Terms = terms(slo, wakes=ref is not None and ref.name in policies)
        self.declared = model.spec.replicas
        self.tenants: set[str] = set()
        self.billed_at = float("-inf")

    @property
    def shared(self) -> bool:
        """Whether shares are kept between tenants, and there are several."""
        return len(self.tenants) > 1 and self.terms.policy != "None"


def _scopes(promised: Promise, tenant: str) -> tuple[ScopedRate, ...]:
    limits = promised.limits
    return () if limits == Rate() else ((f"tenant `{tenant or 'default'}` by SLO `{promised.name}`", limits),)
