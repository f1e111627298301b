"""Which pods of a Model to start and which to let go.

Rules: never fewer serving pods than there are now or than wanted, whichever is less; at most `surge` pods above the
wanted number while a change rolls out; those that do not serve go first, then those whose loss costs least (streams,
caches, adapters), then the youngest. An outdated pod that has served and starts anew is kept while nothing of the new
template serves in its place: perhaps nothing ever does. A pod that serves is drained before it is deleted. A pod that
has to go for another reason (a spot notice) is no longer counted, so its replacement is started in the same pass; nor
is one that is Terminating, however long its node takes. On-demand and spot pods have templates of their own, so a
change of the split rolls like any other change.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sheaf_crds import ModelSpec
from sheaf_crds.base import format_duration

from sheaf_operator.planning.actions import Action, CreatePod, DeletePod, PodTemplate
from sheaf_operator.planning.failures import Failures, failures
from sheaf_operator.planning.leaving import clear, drain_times, retire, see_off
from sheaf_operator.planning.loss import loss
from sheaf_operator.planning.market import Decision
from sheaf_operator.planning.snapshot import PodFacts
from sheaf_operator.planning.spot import Split, patience_ends, split, waiting_in_vain
from sheaf_operator.planning.template import pod_names
from sheaf_operator.planning.words import are, counted

SURGE_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should run of one Model.

    `market` is what was decided about zones, None where the scheduler chooses them.
    """

    replicas: int
    split: Split
    on_demand: PodTemplate
    spot: PodTemplate
    market: Decision | None = None

    @property
    def spec(self) -> ModelSpec:
        """The Model's spec."""
        return self.on_demand.spec

    @property
    def hashes(self) -> frozenset[str]:
        """The templates that are wanted now; pods of others are outdated."""
        return frozenset({self.on_demand.hash, self.spot.hash})

    @property
    def lines(self) -> tuple[tuple[PodTemplate, int], ...]:
        """Each template with the number of pods that there should be of it."""
        return (self.on_demand, self.split.on_demand), (self.spot, self.split.spot)


def wanted_pods(
    on_demand: PodTemplate,
    spot: PodTemplate,
    replicas: int,
    pods: Sequence[PodFacts],
    now: float,
    market: Decision | None = None,
) -> Wanted:
    """What should run, given the templates, the replicas, and the pods that wait for spot capacity."""
    if market is not None:
        found = Split(market.on_demand, market.spot, market.stand_ins, market.spares)
        return Wanted(replicas, found, on_demand, spot, market)
    waiting = waiting_in_vain(pods, spot.hash, now)
    return Wanted(replicas, split(spot.spec.spot, replicas, waiting), on_demand, spot)


def plan_pods(
    wanted: Wanted, pods: Sequence[PodFacts], settled: Collection[str], now: float, taken: Iterable[str] = ()
) -> list[Action]:
    """Repairs, removals and creations for the pods of one Model.

    Args:
        wanted: what should run.
        pods: every pod of the Model.
        settled: the pods that serve and have loaded what they should hold; a new pod counts as capacity from then on.
        now: Unix seconds.
        taken: further names of pods that are not free.
    """
    failed, drain = _failures(wanted, pods, now), wanted.spec.drain_timeout
    counted_pods = [pod for pod in pods if pod.live or pod in failed.holding]
    removals = _removals(wanted, counted_pods, settled)
    capacity = sum(pod.name in settled or (pod.serving and pod.template_hash not in wanted.hashes) for pod in pods)
    actions = clear(failed.spent) + see_off(pods, drain, now, replaced=capacity >= wanted.replicas)
    actions += [retire(pod, drain, reason) for pod, reason in removals]
    removed = {pod.name for pod, _ in removals}
    actions += _tries_elsewhere(wanted, counted_pods, removed) + _tries_longer(wanted, counted_pods, removed)
    names = {*taken, *(pod.name for pod in pods)}
    return actions + _creations(wanted, counted_pods, len(removals), names)


def surge(replicas: int) -> int:
    """Pods above the wanted number while a change rolls out."""
    return max(1, math.ceil(replicas * SURGE_PERCENT / 100))


def wake_times(wanted: Wanted, pods: Sequence[PodFacts], now: float) -> list[float]:
    """When time alone changes what to do with these pods or what is said of them (Unix seconds, later than now)."""
    late = [pod.created_at + wanted.spec.startup_timeout for pod in pods if pod.live and not pod.ready]
    patience = patience_ends(pods, wanted.spot.hash) if wanted.spec.spot.policy == "Preferred" else []
    times = (*drain_times(pods, wanted.spec.drain_timeout), *_failures(wanted, pods, now).replaced_at)
    return [time for time in (*times, *late, *patience) if time > now]


def _failures(wanted: Wanted, pods: Sequence[PodFacts], now: float) -> Failures:
    return failures(pods, wanted.hashes, now, recovered=_serving(pods) >= wanted.replicas)


def _removals(wanted: Wanted, pods: Sequence[PodFacts], settled: Collection[str]) -> list[tuple[PodFacts, str]]:
    """What is to be replaced goes as far as others have taken over, what is too many as far as others serve."""
    current = [pod for pod in pods if pod.template_hash in wanted.hashes]
    outdated = [pod for pod in pods if pod.template_hash not in wanted.hashes]
    surplus = [pod for line in wanted.lines for pod in _surplus(*line, current)]
    moves = _moves(wanted, current, settled)
    replaced = outdated + (surplus if moves else [])
    staying = sum(pod.name in settled for pod in current if pod not in replaced)
    beyond = staying + _serving(replaced) - wanted.replicas
    kept = [] if staying else _recovering(replaced)[: max(0, -beyond)]
    old = _affordable([pod for pod in _expendable(replaced) if pod not in kept], beyond)
    spare = _serving(pods) - _serving(old) - wanted.replicas
    extra = _affordable([] if moves else surplus, spare)
    return [(pod, _why(pod, wanted)) for pod in (*old, *extra)]


def _tries_elsewhere(wanted: Wanted, pods: Iterable[PodFacts], removed: Collection[str]) -> list[Action]:
    """Pods that find no capacity in their zone go; the next pass starts them in another."""
    moves = {move.name: move.reason for move in wanted.market.moves} if wanted.market else {}
    return [
        DeletePod(pod.name, pod.uid, moves[pod.name])
        for pod in pods
        if pod.name in moves and pod.name not in removed and not pod.ready
    ]


def _tries_longer(wanted: Wanted, pods: Iterable[PodFacts], removed: Collection[str]) -> list[Action]:
    """Pods whose engines are ended too early since the Model allows them more time; the next pass starts them anew."""
    reason = f"its engine may take {format_duration(wanted.spec.startup_timeout)} to start by now"
    return [
        DeletePod(pod.name, pod.uid, reason)
        for pod in pods
        if 0 < pod.startup_limit < wanted.spec.startup_timeout
        and pod.engine_restarts
        and not (pod.ready or pod.recovering or pod.ended or pod.name in removed)
    ]


def _moves(wanted: Wanted, current: Sequence[PodFacts], settled: Collection[str]) -> bool:
    """Whether pods of one template are still to take over from pods of the other."""
    for template, count in wanted.lines:
        mine = [pod for pod in current if pod.template_hash == template.hash]
        if len(mine) <= count and sum(pod.name in settled for pod in mine) < count:
            return True
    return False


def _why(pod: PodFacts, wanted: Wanted) -> str:
    if pod.template_hash not in wanted.hashes:
        return "its template is outdated"
    return _total(wanted)


def _surplus(template: PodTemplate, count: int, current: Iterable[PodFacts]) -> list[PodFacts]:
    mine = [pod for pod in current if pod.template_hash == template.hash]
    return _expendable(mine)[: max(0, len(mine) - count)]


def _affordable(pods: Sequence[PodFacts], spare: int) -> list[PodFacts]:
    """All that do not serve, and of those that serve as many as can be spared."""
    idle = [pod for pod in pods if not pod.serving]
    return idle + [pod for pod in pods if pod.serving][: max(0, spare)]


def _serving(pods: Iterable[PodFacts]) -> int:
    return sum(pod.serving for pod in pods)


def _recovering(pods: Iterable[PodFacts]) -> list[PodFacts]:
    return [pod for pod in pods if pod.recovering]


def _expendable(pods: Iterable[PodFacts]) -> list[PodFacts]:
    """The pods in the order in which their loss is felt least."""
    return sorted(pods, key=lambda pod: (pod.serving, loss(pod), -pod.created_at, pod.name))


def _creations(wanted: Wanted, pods: Sequence[PodFacts], removed: int, taken: Iterable[str]) -> list[Action]:
    beyond = wanted.split.stand_ins + wanted.split.spares + surge(wanted.replicas)
    room = wanted.replicas + beyond - (len(pods) - removed)
    actions: list[Action] = []
    for template, count in wanted.lines:
        there = sum(pod.template_hash == template.hash for pod in pods)
        missing = max(0, min(count - there, room - len(actions)))
        reason, names = _need(wanted, pods), pod_names(template, taken, missing)
        zones = _places(wanted, missing) if template.spot else [""] * missing
        actions += [CreatePod(name, template, reason, zone) for name, zone in zip(names, zones, strict=True)]
    return actions


def _places(wanted: Wanted, count: int) -> list[str]:
    """Zones of so many new spot pods, "" for any."""
    places = wanted.market.places if wanted.market else ()
    return [*places, *[""] * count][:count]


def _need(wanted: Wanted, pods: Sequence[PodFacts]) -> str:
    current = sum(pod.template_hash in wanted.hashes for pod in pods)
    if current < len(pods):
        return "a new template rolls out"
    if wanted.market and wanted.market.reasons:
        return f"{_total(wanted)}; {'; '.join(wanted.market.reasons)}"
    if wanted.split.stand_ins:
        return "spot capacity cannot be had at present; on-demand stands in"
    return f"{_total(wanted)}, {current} {are(current)} there"


def _total(wanted: Wanted) -> str:
    total = f"{counted(wanted.replicas, 'replica')} {are(wanted.replicas)} wanted"
    if wanted.spec.spot.policy == "Never":
        return total
    return f"{total} ({wanted.split.on_demand} on-demand, {wanted.split.spot} on spot)"
