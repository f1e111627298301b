"""A declared fleet against a trace: operator, admission, routing and engines together, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, KubeObject, Model
from sheaf_engine.timing import Adapter as EngineAdapter
from sheaf_engine.timing import TimingProfile
from sheaf_gateway.admission.admission import Admit, Reject
from sheaf_gateway.admission.ending import breaks_promise
from sheaf_gateway.admission.terms import Work
from sheaf_operator.planning import FleetIndex, Key

from sheaf.simulator.calls import GATEWAY_TOKENS, Call, block_hashes
from sheaf.simulator.clock import EPOCH, Clock, rarely_collected
from sheaf.simulator.doors import Door
from sheaf.simulator.fleet import Fleet
from sheaf.simulator.flights import Flight
from sheaf.simulator.market import Market
from sheaf.simulator.members import Bill, replicas
from sheaf.simulator.outcome import Outcome
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Policy
from sheaf.simulator.profiles import profile_of
from sheaf.simulator.scaling import PERIOD_S, Autoscaler, Watch, sheaf_scaler
from sheaf.simulator.seams import Seams

COLD_START_S = 120.0
SAMPLES = 240
HEARD_S = 0.5
LOOK_S = 0.25


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
        begin: Unix seconds of the trace's beginning, by which schedules go; None: some evening.
    """

    market: Market = field(default_factory=Market)
    cold_start_s: float = COLD_START_S
    profile: TimingProfile | None = None
    warm: bool = True
    scaler: Callable[[FleetIndex, Mapping[str, TimingProfile], float], Autoscaler] | None = None
    scale_every_s: float = PERIOD_S
    begin: float | None = None


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
        self._warm_s = 2 * setting.cold_start_s + 10.0 if setting.warm else 0.0
        self.clock = Clock(epoch=EPOCH if setting.begin is None else setting.begin - self._warm_s)
        self.policy = policy
        self.result = Result(Outcome(), Bill())
        models = {item.name: item for item in objects if isinstance(item, Model)}
        slos = {item.name: item for item in objects if isinstance(item, SLO)}
        policies = {item.name: item for item in objects if isinstance(item, AutoscalingPolicy)}
        adapters = [item for item in objects if isinstance(item, Adapter)]
        self._profiles = {name: profile_of(model, setting.profile) for name, model in models.items()}
        self._ranks = {item.name: EngineAdapter(item.name, item.spec.rank or 16) for item in adapters}
        self._routable: dict[str, list[Pod[Flight]]] = {name: [] for name in models}
        self._number = self._flying = 0
        self._fresh: list[float] = []
        self._arrived = 0
        self._telling = self._looking = False
        self.fleet = Fleet(
            objects, setting.market, self.clock, setting.cold_start_s, self._start, self._changed, self._lost
        )
        self._door = Door(models, slos, policies, self.fleet.engines)
        self._seams = Seams(
            self.clock,
            ready=lambda model: len(self._routable[model]),
            leaving=self.fleet.leaving,
            batch={name for name, model in models.items() if _is_batch(model, slos)},
            send=self._send,
            leave=self._withdraw,
            broken=self._broken,
        )
        self._watch = Watch(models.values(), slos, self._door.admission)
        make = setting.scaler or sheaf_scaler
        self._scaler = make(self.fleet.index, self._profiles, setting.cold_start_s)
        self._scale_every_s = setting.scale_every_s
        self._scales = bool(policies)
        if policies or adapters:
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
        self.result.outcome.broken += self._flying
        self.result.outcome.moved = self._seams.moved
        self.result.bill = self.fleet.bill
        self.result.seconds = self.clock.now - start
        self.result.events = self.clock.happened
        return self.result

    def _scale(self, _: object) -> None:
        """Look at demand as the operator does, and again a while later."""
        now = self.clock.now
        self.fleet.refresh()
        self.fleet.plan_again(self._wishes(now) if self._scales else ())
        self.clock.at(now + self._scale_every_s, self._scale)

    def _wishes(self, now: float) -> Iterable[Key]:
        ready = {name: len(pods) for name, pods in self._routable.items()}
        slots = {name: self._door.slots.of(name, now) for name in ready}
        report = self._watch.report(ready, slots, now, self.clock.epoch)
        return self._scaler.observe({"gateway": report}, self.clock.epoch + now)

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
        self._door.slots.changed(model, pods)
        self._tell_policy()
        self._seams.changed(model)
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
        self._knock(flight, self.clock.now)

    def _knock(self, flight: Flight, now: float) -> None:
        """Ask admission, then send it, let it wait, or refuse it."""
        model, pods = flight.call.model, self._routable[flight.call.model]

        def measure() -> Work:
            found = self.policy.expected(flight, self._routable[model])
            return Work(uncached=flight.ask.prompt) if found is None else found

        answer = self._door.knock(flight, len(pods), self.fleet.wanted(model), measure, now)
        self._flying += 1
        if isinstance(answer, Admit):
            self._send(flight)
        elif isinstance(answer, Reject):
            self._refuse(flight, answer)
        else:
            self.clock.at(answer.deadline, self._give_up, flight)
            self._look_soon()
            if answer.displaced is not None and answer.refusal is not None:
                self._refuse(self._door.displaced(answer.displaced), answer.refusal)

    def _refuse(self, flight: Flight, answer: Reject) -> None:
        self._flying -= 1
        self.result.outcome.refused += 1
        if breaks_promise(answer.status, answer.code):
            self._watch.failed(flight, self.clock.now)
        else:
            self.result.outcome.limited += 1

    def _look_soon(self) -> None:
        """While somebody waits pods may be found to take more though nothing has ended."""
        if not self._looking:
            self._looking = True
            self.clock.at(self.clock.now + LOOK_S, self._look)

    def _look(self, _: object) -> None:
        self._looking = False
        waiting = sorted(self._door.waiting())
        for model in waiting:
            self._call_in(model)
        if waiting:
            self._look_soon()

    def _send(self, flight: Flight) -> None:
        call, now = flight.call, self.clock.now
        pods = self._routable[call.model]
        pod = self.policy.choose(flight, pods, now)
        flight.pod, flight.sent_at = pod, now
        flight.attempts += 1
        self.policy.sent(flight, pod, now)
        if not flight.first_at:
            self._door.routed(flight, self.policy.uncached(flight))
        adapter = None if call.adapter is None else self._ranks[call.adapter]
        done = flight.kept
        pod.submit(flight, call.input_tokens + done, call.output_tokens - done, flight.hashes, adapter)

    def _give_up(self, flight: Flight) -> None:
        """The wait in the queue is over, if it is still there."""
        answer = self._door.expire(flight, self.clock.now)
        if answer is not None:
            self._refuse(flight, answer)

    def _cached(self, flight: Flight, tokens: int) -> None:
        flight.found = min(tokens, flight.call.input_tokens)
        if not flight.first_at:
            flight.cached = flight.found

    def _first(self, flight: Flight) -> None:
        now = self.clock.now
        if not flight.first_at:
            flight.first_at = now
            self._fresh.append(now - flight.call.arrival)
        self._seams.spoke(flight)
        self.policy.first_token(flight, now)

    def _done(self, flight: Flight) -> None:
        now = self.clock.now
        self.policy.finished(flight, now)
        self._seams.done(flight)
        self._door.leave(flight, now)
        self.result.outcome.note(flight, now)
        self._watch.answered(flight, now)
        self._flying -= 1
        self._call_in(flight.call.model)
        if flight.pod is not None:
            self._idle(flight.pod)

    def _idle(self, pod: Pod[Flight]) -> None:
        if not pod.flights:
            self.fleet.idle(pod.name)

    def _call_in(self, model: str) -> None:
        for flight in self._door.called_in(model, self.clock.now):
            self._send(flight)

    def _lost(self, lost: list[tuple[Flight, int]]) -> None:
        """Continue what a lost pod had, from the tokens that callers already have."""
        for flight, generated in lost:
            self.policy.finished(flight, self.clock.now, lost=True)
            self._keep(flight, generated)
        self._seams.lost([flight for flight, _ in lost])

    def _withdraw(self, flight: Flight, pod: Pod[Flight]) -> None:
        """Take a stream off a pod that has to go."""
        generated = next(tokens for one, tokens in pod.produced() if one is flight)
        pod.withdraw(flight)
        self.policy.finished(flight, self.clock.now)
        self._keep(flight, generated)
        self._idle(pod)

    def _keep(self, flight: Flight, generated: int) -> None:
        flight.kept = min(flight.kept + generated, flight.call.output_tokens - 1)
        flight.pod = None

    def _broken(self, flight: Flight) -> None:
        now = self.clock.now
        self._door.leave(flight, now, well=False)
        self._watch.failed(flight, now)
        self._flying -= 1
        self.result.outcome.broken += 1
        self._call_in(flight.call.model)


def _is_batch(model: Model, slos: Mapping[str, SLO]) -> bool:
    slo = slos.get(model.spec.slo_ref.name) if model.spec.slo_ref else None
    return slo is not None and slo.spec.class_ == "Batch"


def _later(calls: Iterable[Call], start: float) -> Iterable[Call]:
    if not start:
        yield from calls
        return
    for call in calls:
        yield call.at(call.arrival + start)
