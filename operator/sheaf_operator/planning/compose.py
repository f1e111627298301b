"""The plan of one key, and of all of them: what to do for a Model and what is said of it. Repairs come first.

Each pass decides from the index alone. What an earlier life of the operator left behind (pods of no Model, pods that
failed, half a rollout, statuses never written) is mended by the same rules that make things in the first place. The
plan of a key reads nothing but that key's own things, so its cost does not grow with the fleet.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sheaf_crds import Adapter, AutoscalingPolicy, Model
from sheaf_crds.judge import references
from sheaf_crds.model import ModelAutoscaling, SpotZone

from sheaf_operator.planning.actions import Action, CreatePod, Plan, PodTemplate, SetCatalog
from sheaf_operator.planning.catalogs import Catalogs
from sheaf_operator.planning.index import FleetIndex, Key
from sheaf_operator.planning.leaving import clear, drain_times, retire, see_off
from sheaf_operator.planning.market import Decision, Terms
from sheaf_operator.planning.market.fleet import again_times, capacity, remembered
from sheaf_operator.planning.pinning import Pinning, pinning, states_of
from sheaf_operator.planning.pods import Wanted, plan_pods, wake_times, wanted_pods
from sheaf_operator.planning.refs import Finding, judge_adapter, judge_model
from sheaf_operator.planning.report import policy_status, report, scaling_events, slo_status
from sheaf_operator.planning.scaling import Desired, assured_replicas, desired_replicas, known_loads, scaling_record
from sheaf_operator.planning.snapshot import ClusterSnapshot, PodFacts
from sheaf_operator.planning.status_adapter import AdapterFacts, PodNames, adapter_status
from sheaf_operator.planning.status_model import ModelFacts, model_status, stall_times
from sheaf_operator.planning.template import pod_template
from sheaf_operator.planning.words import are, counted

ORPHAN_DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Family:
    """A Model with everything that belongs to it."""

    model: Model
    adapters: Sequence[Adapter]
    pods: Sequence[PodFacts]
    desired: Desired
    wanted: Wanted
    finding: Finding | None
    refusal: str
    record: ModelAutoscaling | None

    @property
    def blocked(self) -> bool:
        """Whether no pods may be made for it."""
        return self.finding is not None and self.finding.blocks


def plan(snapshot: ClusterSnapshot, now: float) -> Plan:
    """Everything to do now for one namespace, with reasons; nothing where all is as declared.

    Args:
        snapshot: what was observed.
        now: Unix seconds.
    """
    index = FleetIndex()
    index.replace(snapshot)
    plans = [plan_key(index, key, now) for key in sorted(index.keys())]
    actions = tuple(action for one in plans for action in one.actions)
    return Plan(actions, min((one.wake_at for one in plans if one.wake_at is not None), default=None))


def plan_key(index: FleetIndex, key: Key, now: float) -> Plan:
    """What to do now for one key, in time proportional to what belongs to it; nothing where nothing does.

    Args:
        index: the fleet.
        key: what to plan.
        now: Unix seconds.
    """
    if key.kind == "Model":
        return _plan_family(index, key.name, now)
    users = index.users_of(key.kind, key.name)
    if key.kind == "SLO":
        slo = index.slo(key.name)
        return Plan(tuple(slo_status(slo, users, now, index.windows(key.name))) if slo else ())
    policy = index.policy(key.name)
    return Plan(tuple(policy_status(policy, users, now)) if policy else ())


def _plan_family(index: FleetIndex, name: str, now: float) -> Plan:
    model, pods = index.model(name), index.pods_of(name)
    own = [pod for pod in pods if model is not None and pod.owner_uid == model.metadata.uid]
    orphans = [pod for pod in pods if model is None or pod.owner_uid != model.metadata.uid]
    actions = _remove_orphans(orphans, now)
    wakes = drain_times(orphans, ORPHAN_DRAIN_SECONDS)
    adapters, strays = _judged_adapters(index, name, model)
    if model is not None:
        family = _family(index, model, adapters, own, now)
        actions += _plan_model(family, now, [pod.name for pod in orphans])
        wakes += [*wake_times(family.wanted, own, now), *stall_times(model), *_market_times(index, family, now)]
    actions += [action for adapter, finding in strays for action in _stray_report(adapter, finding, now)]
    return Plan(tuple(actions), min((time for time in wakes if time > now), default=None))


def _judged_adapters(
    index: FleetIndex, name: str, model: Model | None
) -> tuple[list[Adapter], list[tuple[Adapter, Finding]]]:
    """The Adapters that can be served, and those that cannot."""
    fine: list[Adapter] = []
    strays: list[tuple[Adapter, Finding]] = []
    for adapter in index.adapters_of(name):
        finding = judge_adapter(adapter, index.model(adapter.name), model)
        if finding is None:
            fine.append(adapter)
        else:
            strays.append((adapter, finding))
    return fine, strays


def _family(
    index: FleetIndex, model: Model, adapters: Sequence[Adapter], pods: Sequence[PodFacts], now: float
) -> _Family:
    spec, digest = model.spec, index.settings_digest
    policy = index.policy(spec.autoscaling_policy_ref.name) if spec.autoscaling_policy_ref else None
    unreadable = _unreadable(index, model)
    readable = "AutoscalingPolicy" not in unreadable
    desired = desired_replicas(model, policy, index.scaling(model.name), readable=readable)
    templates = pod_template(model, digest), pod_template(model, digest, spot=True)
    least = assured_replicas(model, policy, index.scaling(model.name), desired.replicas)
    market = _market(index, model, templates, (desired.replicas, least), pods, now)
    wanted = wanted_pods(*templates, desired.replicas, pods, now, market)
    return _Family(
        model,
        adapters,
        pods,
        desired,
        wanted,
        _finding(index, model, policy, unreadable),
        index.refusal(model.name),
        scaling_record(model, index.scaling(model.name)),
    )


def _market(
    index: FleetIndex,
    model: Model,
    templates: tuple[PodTemplate, PodTemplate],
    replicas: tuple[int, int],
    pods: Sequence[PodFacts],
    now: float,
) -> Decision | None:
    """Where pods go, where there are zones to choose from; `replicas` are those wanted, and the assured of them."""
    if model.spec.spot.policy == "Never" or len(index.market.zones) < 2:
        return None
    hashes = templates[0].hash, templates[1].hash
    loads = known_loads(model, index.scaling(model.name))
    return capacity(model, _terms(index, model), replicas[0], pods, hashes, now, loads, replicas[1])


def _terms(index: FleetIndex, model: Model) -> Terms:
    slo = index.slo(model.spec.slo_ref.name) if model.spec.slo_ref else None
    return index.market.terms(model, batch=slo is not None and slo.spec.class_ == "Batch")


def _market_times(index: FleetIndex, family: _Family, now: float) -> list[float]:
    if family.wanted.market is None:
        return []
    return again_times(family.pods, family.wanted.spot.hash, _terms(index, family.model), now)


def _unreadable(index: FleetIndex, model: Model) -> frozenset[str]:
    """The kinds of what a Model refers to that is there and cannot be read."""
    return frozenset(ref.kind for ref in references(model) if index.unreadable(ref.kind, ref.name))


def _finding(
    index: FleetIndex, model: Model, policy: AutoscalingPolicy | None, unreadable: frozenset[str]
) -> Finding | None:
    slo = model.spec.slo_ref is not None and index.slo(model.spec.slo_ref.name) is not None
    between = judge_model(model, index.adapter(model.name), policy, slo=slo, unreadable=unreadable)
    found = [finding for finding in (between, index.obstacle(model)) if finding is not None]
    return next((finding for finding in found if finding.blocks), found[0] if found else None)


def _remove_orphans(orphans: Sequence[PodFacts], now: float) -> list[Action]:
    actions = clear(pod for pod in orphans if pod.phase == "Failed")
    actions += see_off(orphans, ORPHAN_DRAIN_SECONDS, now, replaced=True)
    return actions + [retire(pod, ORPHAN_DRAIN_SECONDS, f"Model {pod.model} is gone") for pod in orphans if pod.live]


def _plan_model(family: _Family, now: float, taken: Sequence[str]) -> list[Action]:
    model, pods, adapters = family.model, family.pods, family.adapters
    pinned, catalogs = pinning(model, adapters, pods), Catalogs(adapters)
    settled = {pod.name for pod in pods if pod.live and catalogs.settled(pod, pinned.by_pod[pod.name])}
    actions = plan_pods(family.wanted, pods, settled, now, taken)
    if family.blocked:
        actions = [action for action in actions if not isinstance(action, CreatePod)]
    else:
        actions += _catalog_changes(pods, pinned.by_pod, catalogs, len(adapters))
    status, verdicts = model_status(_facts(family), now)
    status = status.model_copy(update={"spot_zones": _memory(family, now)})
    actions += report(model, status, *verdicts) + scaling_events(model, family.record)
    return actions + _adapter_reports(family, pinned, now)


def _facts(family: _Family) -> ModelFacts:
    return ModelFacts(
        family.model,
        family.desired,
        family.wanted,
        family.pods,
        len(family.adapters),
        family.finding,
        family.refusal,
        family.record,
    )


def _memory(family: _Family, now: float) -> tuple[SpotZone, ...]:
    market = family.wanted.market
    refused = [move.name for move in market.moves] if market else []
    return remembered(family.model, family.pods, refused, now)


def _catalog_changes(
    pods: Iterable[PodFacts], pinned: Mapping[str, frozenset[str]], catalogs: Catalogs, adapters: int
) -> list[Action]:
    actions: list[Action] = []
    for pod in pods:
        if pod.agent is None or pod.name not in pinned:
            continue
        generation = catalogs.generation(pinned[pod.name], pod.agent)
        if generation != pod.agent.catalog_generation:
            catalog = catalogs.catalog(pinned[pod.name], generation)
            reason = f"{counted(adapters, 'adapter')} {are(adapters)} declared"
            actions.append(SetCatalog(pod.name, pod.uid, catalog, reason))
    return actions


def _adapter_reports(family: _Family, pinned: Pinning, now: float) -> list[Action]:
    states, names = states_of(family.pods), PodNames.of(family.pods)
    actions: list[Action] = []
    for adapter in family.adapters:
        name = adapter.name
        placed = pinned.by_adapter.get(name, frozenset())
        facts = AdapterFacts(adapter, names, placed, pinned.wished[name], family.desired.replicas)
        actions += report(adapter, *adapter_status(facts, states.get(name, {}), now))
    return actions


def _stray_report(adapter: Adapter, finding: Finding, now: float) -> list[Action]:
    facts = AdapterFacts(adapter, PodNames(), finding=finding)
    return report(adapter, *adapter_status(facts, {}, now))
