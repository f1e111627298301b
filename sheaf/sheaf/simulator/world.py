"""A declared fleet against a trace: operator, admission, routing and engines together, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, KubeObject, Model
from sheaf_engine.timing import Adapter as EngineAdapter
from sheaf_engine.timing import TimingProfile
from sheaf_operator.planning import FleetIndex

from sheaf.simulator.calls import GATEWAY_TOKENS, Call, block_hashes
from sheaf.simulator.clock import Clock, rarely_collected
from sheaf.simulator.doors import MAX_INFLIGHT, Door
from sheaf.simulator.fleet import EPOCH, Bill, Fleet, replicas
from sheaf.simulator.flights import Flight
from sheaf.simulator.market import Market
from sheaf.simulator.outcome import Outcome
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Policy
from sheaf.simulator.profiles import profile_of
from sheaf.simulator.scaling import PERIOD_S, Autoscaler, Watch, sheaf_scaler

COLD_START_S = 120.0
SAMPLES = 240
HEARD_S = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment; `arrived` and `first_s` (times to first token) since the sample before."""

    at: float
    ready: int
    spot: int
    running: int
    waiting: int
    preemptions: int
    money: float
    arrived: int
    first_s: tuple[float, ...]


@dataclass(slots=True)
class Result:
    """What became of one run."""

    outcome: Outcome
    bill: Bill
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    too_long: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything besides manifests and trace.

    Attributes:
        market: capacity and prices.
        cold_start_s: from a pod's creation until it serves.
        profile: timing of every pod; None chooses by accelerator.
        warm: whether the fleet is up before the first request comes.
        scaler: makes who decides on numbers of replicas, from the fleet's index, the profiles by Model and the cold
            start; None: the operator's own.
        scale_every_s: how often it looks.
    """

    market: Market = field(default_factory=Market)
    cold_start_s: float = COLD_START_S
    profile: TimingProfile | None = None
    warm: bool = True
    scaler: Callable[[FleetIndex, Mapping[str, TimingProfile], float], Autoscaler] | None = None
    scale_every_s: float = PERIOD_S


class World:
    """One run.

    Args:
        objects: what the manifests declare.
        policy: chooses pods.
        setting: the rest.

    Raises:
        ValueError: where a Model's engine arguments make no sense.
    """

    def __init__(self, objects: Sequence[KubeObject], policy: Policy, setting: Setting) -> None:
        self.clock = Clock()
        self.policy = policy
        self.result = Result(Outcome(), Bill())
        models = {item.name: item for item in objects if isinstance(item, Model)}
        slos = {item.name: item for item in objects if isinstance(item, SLO)}
        policies = {item.name: item for item in objects if isinstance(item, AutoscalingPolicy)}
        adapters = [item for item in objects if isinstance(item, Adapter)]
        self._profiles = {name: profile_of(model, setting.profile) for name, model in models.items()}
        self._ranks = {item.name: EngineAdapter(item.name, item.spec.rank or 16) for item in adapters}
        self._door = Door(models, slos, policies)
        self._routable: dict[str, list[Pod[Flight]]] = {name: [] for name in models}
        self._admitted: dict[int, float] = {}
        self._stranded: dict[str, list[Flight]] = {name: [] for name in models}
        self._number = self._flying = 0
        self._fresh: list[float] = []
        self._arrived = 0
        self._telling = False
        self._warm_s = 2 * setting.cold_start_s + 10.0 if setting.warm else 0.0
        self.fleet = Fleet(
            objects, setting.market, self.clock, setting.cold_start_s, self._start, self._changed, self._lost
        )
        self._watch = Watch(models.values(), slos, self._door.admission)
        make = setting.scaler or sheaf_scaler
        self._scaler = make(self.fleet.index, self._profiles, setting.cold_start_s)
        self._scale_every_s = setting.scale_every_s
        if policies:
            self.clock.at(self._warm_s, self._scale)

    def run(self, calls: Sequence[Call]) -> Result:
        """All calls, to the last token."""
        with rarely_collected():
            return self._run(calls)

    def _run(self, calls: Sequence[Call]) -> Result:
        start, last = self._warm_s, calls[-1].arrival
        self.clock.run(start)
        self.fleet.settle_anew()
        self.clock.feed(_later(calls, start), self._arrive)
        self._sample_every(max(last / SAMPLES, 1.0), start + last)
        self.clock.run(start + last)
        while self._flying and self.clock.step():
            pass
        self.fleet.settle()
        self._sample(None)
        self.result.outcome.refused += self._flying
        self.result.bill = self.fleet.bill
        self.result.seconds = self.clock.now - start
        self.result.events = self.clock.happened
        return self.result

    def _scale(self, _: object) -> None:
        """Look at demand as the operator does, and again a while later."""
        now = self.clock.now
        self.fleet.refresh()
        ready = {name: len(pods) for name, pods in self._routable.items()}
        report = self._watch.report(ready, MAX_INFLIGHT, now, EPOCH)
        self.fleet.plan_again(self._scaler.observe({"gateway": report}, EPOCH + now))
        self.clock.at(now + self._scale_every_s, self._scale)

    def _sample_every(self, period: float, end: float) -> None:
        count = int((end - self.clock.now) / period)
        for index in range(count + 1):
            self.clock.at(self.clock.now + index * period, self._sample)

    def _sample(self, _: object) -> None:
        ready, spot = replicas(self.fleet.members)
        running = sum(len(pod.flights) for pods in self._routable.values() for pod in pods)
        fresh, self._fresh = tuple(self._fresh), []
        arrived, self._arrived = self._arrived, 0
        at = self.clock.now - self._warm_s
        waiting = self._flying - running
        bill = self.fleet.bill
        self.result.samples.append(
            Sample(at, ready, spot, running, waiting, bill.preemptions, self.fleet.owed(), arrived, fresh)
        )

    def _start(self, name: str, model: str) -> Pod[Flight]:
        return Pod(name, model, self._profiles[model], self.clock, self._cached, self._first, self._done)

    def _changed(self, model: str) -> None:
        pods = self._routable[model] = self.fleet.routable(model)
        self._tell_policy()
        if pods:
            stranded, self._stranded[model] = self._stranded[model], []
            for flight in stranded:
                self._send(flight)
            self._call_in(model)

    def _tell_policy(self) -> None:
        """The policy hears of changes a while later, all at once, as a gateway does of its fleet."""
        if not self._telling:
            self._telling = True
            self.clock.at(self.clock.now + HEARD_S, self._policy_hears)

    def _policy_hears(self, _: object) -> None:
        self._telling = False
        self.policy.fleet_changed([pod for found in self._routable.values() for pod in found], self.clock.now)

    def _arrive(self, call: Call) -> None:
        self._number += 1
        self._arrived += 1
        profile = self._profiles[call.model]
        if call.input_tokens + call.output_tokens > profile.max_model_len:
            self.result.too_long += 1
            return
        hashes, chain = block_hashes(call, call.tenant, (profile.block_size, GATEWAY_TOKENS))
        flight = Flight(self._number, call, hashes, list(chain))
        now, ready = self.clock.now, len(self._routable[call.model])
        until = self._door.knock(flight, ready, self.fleet.wanted(call.model), now)
        if until is None:
            self.result.outcome.refused += 1
            self._watch.refused(flight, now)
            return
        self._flying += 1
        if until > now:
            self.clock.at(until, self._give_up, flight)
        else:
            self._enter(flight)

    def _enter(self, flight: Flight) -> None:
        self._admitted[flight.number] = self.clock.now
        self._send(flight)

    def _send(self, flight: Flight) -> None:
        call, now = flight.call, self.clock.now
        pods = self._routable[call.model]
        if not pods:
            self._stranded[call.model].append(flight)
            return
        pod = self.policy.choose(flight, pods, now)
        flight.pod, flight.sent_at = pod, now
        flight.attempts += 1
        self.policy.sent(flight, pod, now)
        adapter = None if call.adapter is None else self._ranks[call.adapter]
        done = flight.kept
        pod.submit(flight, call.input_tokens + done, call.output_tokens - done, flight.hashes, adapter)

    def _give_up(self, flight: Flight) -> None:
        """The wait in the queue is over, if it is still there."""
        if flight.number in self._admitted or flight.first_at:
            return
        if not self._door.displaced(flight):
            self._door.expire(flight, self.clock.now)
        self._flying -= 1
        self.result.outcome.refused += 1
        self._watch.refused(flight, self.clock.now)

    def _cached(self, flight: Flight, tokens: int) -> None:
        if not flight.first_at:
            flight.cached = min(tokens, flight.call.input_tokens)

    def _first(self, flight: Flight) -> None:
        now = self.clock.now
        if not flight.first_at:
            flight.first_at = now
            self._fresh.append(now - flight.call.arrival)
        self.policy.first_token(flight, now)

    def _done(self, flight: Flight) -> None:
        now, model = self.clock.now, flight.call.model
        self.policy.finished(flight, now)
        self._door.leave(flight, self._admitted.pop(flight.number), now)
        self.result.outcome.note(flight, now)
        self._watch.answered(flight, now)
        self._flying -= 1
        if flight.pod is not None and not flight.pod.flights:
            self.fleet.idle(flight.pod.name)
        self._call_in(model)

    def _call_in(self, model: str) -> None:
        for flight in self._door.called_in(model, len(self._routable[model]), self.clock.now):
            self._enter(flight)

    def _lost(self, lost: list[tuple[Flight, int]]) -> None:
        """Continue what a lost pod had, from the tokens that callers already have."""
        for flight, generated in lost:
            self.policy.finished(flight, self.clock.now, lost=True)
            flight.kept = min(flight.kept + generated, flight.call.output_tokens - 1)
            flight.pod = None
            self.result.outcome.moved += 1
            self._send(flight)


def _later(calls: Iterable[Call], start: float) -> Iterable[Call]:
    if not start:
        yield from calls
        return
    for call in calls:
        yield call.at(call.arrival + start)
