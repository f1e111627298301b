"""Sheaf's own admission, unchanged: the one place where the simulator meets the gateway's admission room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sheaf_crds import SLO, AutoscalingPolicy, Model
from sheaf_gateway.admission.admission import Admission, Admit, Reject, Wait
from sheaf_gateway.admission.limits import ScopedRate
from sheaf_gateway.admission.terms import Ask, Terms
from sheaf_gateway.fleet.view import Availability, Rate

from sheaf.simulator.flights import Flight

MAX_INFLIGHT = 256
_ORDERED_BY = 0.95


class Door:
    """Admission for all Models of a fleet.

    Args:
        models: by name.
        slos: by name.
        policies: names of the AutoscalingPolicies that exist.
        max_inflight: requests at once on a ready pod, as the gateway's configuration has it.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        slos: Mapping[str, SLO],
        policies: Mapping[str, AutoscalingPolicy],
        max_inflight: int = MAX_INFLIGHT,
    ) -> None:
        self.admission = Admission()
        self._terms = {name: _terms(model, slos, policies) for name, model in models.items()}
        self._queues = {name: _slo_of(model, slos) for name, model in models.items()}
        self._max_inflight = max_inflight
        self._asks: dict[str, tuple[Ask, Flight]] = {}

    def knock(self, flight: Flight, ready: int, wanted: int, now: float) -> float | None:
        """A request comes.

        Returns:
            `now` where it may enter, a later time until which it may wait, None where it is refused.
        """
        call = flight.call
        ask = self._ask(flight, ready, wanted)
        answer = self.admission.decide(ask, now)
        if isinstance(answer, Reject):
            return None
        self._asks[ask.request_id] = (ask, flight)
        if isinstance(answer, Wait):
            if answer.displaced is not None:
                self._drop(answer.displaced)
            return answer.deadline
        assert isinstance(answer, Admit), call  # noqa: S101 - exhaustive
        return now

    def leave(self, flight: Flight, admitted_at: float, now: float) -> None:
        """An admitted request is over."""
        ask, _ = self._asks.pop(str(flight.number))
        call = flight.call
        used = float(call.input_tokens + call.output_tokens)
        self.admission.release(
            ask,
            now,
            used_tokens=used,
            uncached=float(call.input_tokens - flight.cached),
            output=float(call.output_tokens),
            service_s=now - admitted_at,
            first_s=flight.first_at - admitted_at if flight.first_at else None,
        )

    def called_in(self, model: str, ready: int, now: float) -> Iterator[Flight]:
        """Those who waited and may enter now."""
        while (ask := self.admission.next_waiter(model, ready * self._max_inflight, now)) is not None:
            yield self._asks[ask.request_id][1]

    def expire(self, flight: Flight, now: float) -> None:
        """The wait of a request is over in vain."""
        ask, _ = self._asks.pop(str(flight.number))
        self.admission.expire(ask, now)

    def displaced(self, flight: Flight) -> bool:
        """Whether a request that waited is no longer known: it made room for another."""
        return str(flight.number) not in self._asks

    def _drop(self, ask: Ask) -> None:
        self._asks.pop(ask.request_id, None)

    def _ask(self, flight: Flight, ready: int, wanted: int) -> Ask:
        call = flight.call
        queue = self._queues[call.model]
        return Ask(
            request_id=str(flight.number),
            model=call.model,
            availability=_availability(ready, wanted),
            slots=ready * self._max_inflight,
            tenant=call.tenant,
            batch=queue is not None and queue.spec.class_ == "Batch",
            terms=self._terms[call.model],
            scopes=_scopes(queue, call.tenant),
            tokens=float(call.input_tokens + call.output_tokens),
            prompt=float(call.input_tokens),
            max_queue=1024 if queue is None else queue.spec.queue.max_requests,
            max_wait=30.0 if queue is None else queue.spec.queue.max_wait,
        )


def _availability(ready: int, wanted: int) -> Availability:
    if ready:
        return "Ready"
    return "Starting" if wanted else "Zero"


def _slo_of(model: Model, slos: Mapping[str, SLO]) -> SLO | None:
    return slos.get(model.spec.slo_ref.name) if model.spec.slo_ref else None


def _scopes(slo: SLO | None, tenant: str) -> tuple[ScopedRate, ...]:
    limits = Rate() if slo is None else Rate(**slo.spec.limits.model_dump())
    return () if slo is None or limits == Rate() else ((f"tenant `{tenant or 'default'}` by SLO `{slo.name}`", limits),)


def _terms(model: Model, slos: Mapping[str, SLO], policies: Mapping[str, AutoscalingPolicy]) -> Terms:
    slo, ref = _slo_of(model, slos), model.spec.autoscaling_policy_ref
    wakes = ref is not None and ref.name in policies
    if slo is None:
        return Terms(wakes=wakes)
    promised = slo.spec.ttft.bounds()
    within = [seconds for quantile, seconds in promised if quantile <= _ORDERED_BY]
    return Terms(
        policy=slo.spec.fairness.policy,
        weights=slo.spec.fairness.weights,
        ttft=within[-1] if within else (promised[0][1] if promised else None),
        ttft_limit=promised[-1][1] if promised else None,
        interactive=slo.spec.class_ == "Interactive",
        wakes=wakes,
    )
