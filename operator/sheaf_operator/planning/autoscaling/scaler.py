"""All Models' decisions, kept up in the fleet's index: the same object in the operator, `sheaf up` and the simulator.

It does no I/O and reads no clock: somebody brings it what gateways said and the time, every few seconds. It remembers
what decisions leave for the next, begins with what statuses hold, learns cold starts from pods that become ready, and
tells which Models and SLOs have to be planned again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from sheaf_crds import SLO, AutoscalingPolicy, Model
from sheaf_crds.model import ModelAutoscaling

from sheaf_operator.planning.autoscaling.bounds import floor
from sheaf_operator.planning.autoscaling.decide import decide
from sheaf_operator.planning.autoscaling.facts import Demand, Facts, Promise, Reason, Speed
from sheaf_operator.planning.autoscaling.gather import Reports, Windows, demand_of, meaningful, windows_of
from sheaf_operator.planning.autoscaling.loads import Loads
from sheaf_operator.planning.autoscaling.memory import Memory, recorded, remembered
from sheaf_operator.planning.index import FleetIndex, Key
from sheaf_operator.planning.scaling import Scaling
from sheaf_operator.planning.snapshot import PodFacts

COLD_START_S = 120.0
NODE_S = 300.0
WINDOWS_EVERY_S = 60.0
PAUSE_S = 5.0
QUIET_S = 15.0
_LEARNING = 0.3

SpeedOf = Callable[[Model], Speed | None]


@dataclass(slots=True)
class _Known:
    """What is remembered of one Model, by the UID of which it holds.

    `seen` are its pods as of the last look (None: there was none), `starting` those of them that were never ready.
    """

    uid: str
    memory: Memory
    starting: frozenset[str] = frozenset()
    seen: frozenset[str] | None = None
    reasons: tuple[Reason, ...] = ()
    demand: Demand | None = None
    record: ModelAutoscaling | None = None
    loads: Loads = field(default_factory=Loads)


@dataclass(frozen=True, slots=True)
class Standing:
    """What metrics show of one Model: the number decided, and what is asked (None: nobody knows)."""

    model: str
    replicas: int
    demand: Demand | None


class Scaler:
    """Decides for every Model of an index that has an AutoscalingPolicy.

    Args:
        index: the fleet; decisions are noted there.
        speed_of: how fast a replica of a Model is; None: not known.
        cold_start_s: what a start is taken for until pods have shown it.
    """

    def __init__(self, index: FleetIndex, speed_of: SpeedOf, cold_start_s: float = COLD_START_S) -> None:
        self._index, self._speed_of, self._cold_start_s = index, speed_of, cold_start_s
        self._known: dict[str, _Known] = {}
        self._windows_at: dict[str, float] = {}

    def observe(self, reports: Reports, now: float) -> frozenset[Key]:
        """Decide anew on what gateways said; returns the keys whose plan may have changed."""
        dirty: set[Key] = set()
        for one in self.looks(reports, now):
            dirty |= one
        return frozenset(dirty)

    def looks(self, reports: Reports, now: float) -> Iterator[frozenset[Key]]:
        """The same Model by Model, for a loop that must not be held up by thousands of them."""
        models = self._index.scaled_models()
        for model, policy in models:
            yield self._decide(model, policy, reports, now)
        for name in set(self._known) - {model.name for model, _ in models}:
            yield self._rest(name)
        for slo in self._index.slos():
            yield self._note_windows(slo, reports, now)

    def reasons(self, model: str) -> tuple[Reason, ...]:
        """Why the number of a Model is what it is, as of the last look."""
        known = self._known.get(model)
        return known.reasons if known else ()

    def standings(self) -> Iterable[Standing]:
        """What metrics show, by Model."""
        for name, known in sorted(self._known.items()):
            yield Standing(name, known.memory.replicas or 0, known.demand)

    def _decide(self, model: Model, policy: AutoscalingPolicy, reports: Reports, now: float) -> frozenset[Key]:
        pods = self._index.pods_of(model.name)
        known = self._recall(model)
        self._learn(known, pods, model.spec.startup_timeout, now)
        slo = self._index.slo(model.spec.slo_ref.name) if model.spec.slo_ref else None
        facts = self._facts(model, slo, pods, known.memory)
        known.demand = _with_pods(demand_of(model.name, reports, now), pods, _burns(slo, reports, now))
        decision = decide(policy.spec, facts, known.demand, now, known.memory)
        known.memory, known.reasons = decision.memory, decision.reasons
        if model.spec.spot.policy != "Never":
            known.loads = known.loads.noted(facts, known.demand, decision.replicas, now)
        record = self._record(known, policy)
        least = min(decision.replicas, floor(policy.spec, facts, now))
        return self._index.note_scaling(model.name, Scaling(decision.replicas, record, known.loads.known, least))

    def _rest(self, name: str) -> frozenset[Key]:
        """A Model that names no policy is forgotten; one whose policy is away keeps its number."""
        model = self._index.model(name)
        if model is not None and model.spec.autoscaling_policy_ref and model.metadata.uid == self._known[name].uid:
            self._known[name].demand = None
            return frozenset()
        del self._known[name]
        return self._index.note_scaling(name, None)

    def _recall(self, model: Model) -> _Known:
        known = self._known.get(model.name)
        if known is None or known.uid != model.metadata.uid:
            memory = remembered(model.status.autoscaling)
            known = self._known[model.name] = _Known(model.metadata.uid, memory, record=model.status.autoscaling)
        return known

    def _learn(self, known: _Known, pods: Iterable[PodFacts], longest_s: float, now: float) -> None:
        """Take the first start of each pod that was seen starting and serves now; what starts anew is no cold start."""
        pods = list(pods)
        for pod in pods:
            if pod.ready and pod.uid in known.starting and not pod.restarts and now > pod.created_at:
                before, seen = known.memory.cold_start_s, _start_s(pod, longest_s, now)
                learnt = seen if before is None else before + _LEARNING * (seen - before)
                known.memory = replace(known.memory, cold_start_s=learnt)
        known.starting = frozenset(pod.uid for pod in pods if _starts(pod, known))
        known.seen = frozenset(pod.uid for pod in pods)

    def _facts(self, model: Model, slo: SLO | None, pods: Iterable[PodFacts], memory: Memory) -> Facts:
        spec = model.spec
        serving = [pod for pod in pods if pod.serving]
        return Facts(
            declared=spec.replicas,
            low=spec.min_replicas,
            high=spec.max_replicas,
            ready=len(serving),
            speed=_with_cache(self._speed_of(model), serving),
            promise=promise(slo) if slo else None,
            cold_start_s=min(
                self._cold_start_s if memory.cold_start_s is None else memory.cold_start_s,
                spec.startup_timeout + NODE_S,
            ),
        )

    def _record(self, known: _Known, policy: AutoscalingPolicy) -> ModelAutoscaling:
        """What the status says; a cold start alone is not worth a write, nor is an hour while nothing is asked."""
        fresh = recorded(known.memory, policy.name, keeps_season=policy.spec.forecast is not None)
        before = known.record
        if before is not None:
            idle = known.demand is None or known.memory.idle_since is not None
            trifles = {"cold_start": before.cold_start} | ({"season": before.season} if idle else {})
            if fresh.model_copy(update=trifles) == before:
                return before
        known.record = fresh
        return fresh

    def _note_windows(self, slo: SLO, reports: Reports, now: float) -> frozenset[Key]:
        passed = now - self._windows_at.get(slo.name, float("-inf"))
        if passed < QUIET_S or not _due(passed, self._quiet_s(slo, reports, now)):
            return frozenset()
        found = windows_of(slo.name, reports, now)
        if not found or not _worth(slo.status.windows, found):
            return frozenset()
        self._windows_at[slo.name] = now
        return self._index.note_windows(slo.name, found)

    def _quiet_s(self, slo: SLO, reports: Reports, now: float) -> float:
        """For how long nobody has asked under it."""
        demands = (demand_of(model, reports, now) for model in self._index.models_under(slo.name))
        quiet = (demand.quiet_s for demand in demands if demand is not None)
        return min((seconds for seconds in quiet if seconds is not None), default=float("inf"))


def _starts(pod: PodFacts, known: _Known) -> bool:
    """Whether a pod starts for the first time. A first look goes by what is certain: its engine has never answered."""
    if pod.ready or pod.restarts or not pod.live:
        return False
    if known.seen is None:
        return pod.phase == "Pending" or (pod.agent is not None and not pod.agent.engine_epoch)
    return pod.uid in known.starting or pod.uid not in known.seen


def _start_s(pod: PodFacts, longest_s: float, now: float) -> float:
    """How long it took to start: adding a node belongs to it, hours without one do not."""
    since = max(pod.scheduled_at, pod.created_at)
    return min(now - since, longest_s) + min(since - pod.created_at, NODE_S)


def _due(passed_s: float, quiet_s: float) -> bool:
    """Whether windows may be written: now and then while somebody asks, and a last time when they pause."""
    return quiet_s < QUIET_S and (passed_s >= WINDOWS_EVERY_S or quiet_s >= PAUSE_S)


def promise(slo: SLO) -> Promise:
    """What an SLO promises."""
    return Promise(slo.spec.ttft.bounds(), slo.spec.tpot.bounds(), slo.spec.e2e.bounds())


def _worth(old: Windows, new: Windows) -> bool:
    """An SLO that nobody ever asked under says nothing."""
    asked = any(window.requests for window in (*old, *new))
    return asked and meaningful(old, new)


def _burns(slo: SLO | None, reports: Reports, now: float) -> dict[str, float]:
    """Burn of the error budget by window, of those with requests."""
    windows = windows_of(slo.name, reports, now) if slo is not None else ()
    return {window.window: window.burn for window in windows if window.requests}


def _with_pods(demand: Demand | None, pods: Iterable[PodFacts], burns: Mapping[str, float]) -> Demand | None:
    if demand is None:
        return None
    loads = [pod.agent.load.kv_usage for pod in pods if pod.serving and pod.agent is not None]
    return replace(
        demand, kv_use=sum(loads) / len(loads) if loads else 0.0, burn=burns.get("5m"), hour_burn=burns.get("1h")
    )


def _with_cache(speed: Speed | None, serving: Iterable[PodFacts]) -> Speed | None:
    """The speed with the smallest KV cache that agents report."""
    sizes = [pod.agent.kv_tokens for pod in serving if pod.agent is not None and pod.agent.kv_tokens]
    return replace(speed, kv_tokens=min(sizes)) if speed is not None and sizes else speed
