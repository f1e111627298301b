"""Autoscaling in virtual time: the operator's own Scaler, told every few seconds what the simulated gateway knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from sheaf_crds import SLO, Model
from sheaf_engine.timing import TimingProfile
from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.admission.attainment import WINDOWS, Attainment, Outcome
from sheaf_gateway.admission.promised import bounds, window
from sheaf_operator.planning.autoscaling import Demand, Report, Reports, Scaler, Speed, Work
from sheaf_operator.planning.index import FleetIndex, Key

from sheaf.simulator.flights import Flight

PERIOD_S = 5.0


class Autoscaler(Protocol):
    """Who decides on numbers of replicas: Sheaf's Scaler, or a peer."""

    def observe(self, reports: Reports, now: float) -> frozenset[Key]:
        """Note decisions in the fleet's index; returns the keys to plan."""
        ...


def sheaf_scaler(index: FleetIndex, profiles: Mapping[str, TimingProfile], cold_start_s: float) -> Scaler:
    """The operator's, which knows the profiles by Model as an installation does."""
    speeds = {name: speed_of(profile) for name, profile in profiles.items()}
    return Scaler(index, lambda model: speeds.get(model.name), cold_start_s)


def speed_of(profile: TimingProfile) -> Speed:
    """What the planner needs of a timing profile."""
    return Speed(
        step_s=profile.step_overhead_s,
        token_s=profile.prefill_token_s,
        pair_s=profile.prefill_attention_s,
        sequence_s=profile.decode_sequence_s,
        context_s=profile.kv_token_s,
        batch_tokens=profile.max_num_batched_tokens,
        sequences=profile.max_num_seqs,
        kv_tokens=profile.num_blocks * profile.block_size,
    )


class Watch:
    """What the gateway would answer: demand by Model from admission, windows by SLO from outcomes."""

    def __init__(self, models: Iterable[Model], slos: Mapping[str, SLO], admission: Admission) -> None:
        self._admission = admission
        refs = {model.name: model.spec.slo_ref.name for model in models if model.spec.slo_ref}
        self._slo_of = {name: ref for name, ref in refs.items() if ref in slos}
        self._kept = {name: Attainment(bounds(slo), 0.0) for name, slo in slos.items()}

    def answered(self, flight: Flight, now: float) -> None:
        """A request has ended well."""
        kept = self._of(flight)
        if kept is not None:
            call = flight.call
            further = call.output_tokens - 1
            tpot = (now - flight.first_at) / further if further > 0 else None
            kept.answered(Outcome(flight.first_at - call.arrival, tpot, now - call.arrival), now)

    def failed(self, flight: Flight, now: float) -> None:
        """A request was refused for load, or broken off."""
        kept = self._of(flight)
        if kept is not None:
            kept.failed(now)

    def report(self, ready: Mapping[str, int], slots: Mapping[str, int], now: float, epoch: float) -> Report:
        """One answer.

        Args:
            ready: pods that take requests, by Model.
            slots: requests that these take at once, by Model.
            now: virtual seconds.
            epoch: Unix seconds of virtual 0.
        """
        demands = {name: self._demand(name, count, slots[name], now) for name, count in ready.items()}
        windows = {
            name: tuple(window(title, kept.window(seconds, now)) for title, seconds in WINDOWS.items())
            for name, kept in self._kept.items()
        }
        return Report(epoch + now, demands, windows)

    def _of(self, flight: Flight) -> Attainment | None:
        return self._kept.get(self._slo_of.get(flight.call.model, ""))

    def _demand(self, model: str, ready: int, slots: int, now: float) -> Demand:
        found = self._admission.demand(model, now, ready=ready > 0)
        work = Work(
            found.prompt_tokens,
            found.uncached_tokens,
            found.output_tokens,
            found.uncached_spread,
            found.context_tokens,
            found.context_spread,
        )
        return Demand(
            running=found.running,
            waiting=found.waiting,
            held=found.held,
            rate=found.arrival_rate,
            service_s=found.service_s,
            slots=slots,
            work=work if found.output_tokens else None,
            quiet_s=found.quiet_s,
        )
