"""The plan of one key, and of all of them: what to do for a Model and what is said of it. Repairs come first.

Each pass decides from the index alone. What an earlier life of the operator left behind (pods of no Model, pods that
failed, half a rollout, statuses never written) is mended by the same rules that make things in the first place. The
plan of a key reads nothing but that key's own things, so its cost does not grow with the fleet.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sheaf_crds import Adapter, Model
from sheaf_crds.agent_api import AdapterState, Catalog

from sheaf_operator.planning.actions import Action, Plan, SetCatalog
from sheaf_operator.planning.catalogs import catalog_of, placements, settled
from sheaf_operator.planning.index import FleetIndex, Key
from sheaf_operator.planning.pods import Wanted, finish, plan_pods, retire, wake_times
from sheaf_operator.planning.refs import Finding, judge_adapter, judge_model
from sheaf_operator.planning.report import policy_status, report, slo_status
from sheaf_operator.planning.snapshot import ClusterSnapshot, PodFacts
from sheaf_operator.planning.status_adapter import AdapterFacts, adapter_status
from sheaf_operator.planning.status_model import ModelFacts, model_status
from sheaf_operator.planning.template import Desired, desired_replicas, pod_template

ORPHAN_DRAIN_SECONDS = 30.0

States = Mapping[str, Mapping[str, AdapterState]]


@dataclass(frozen=True, slots=True)
class _Family:
    """A Model with everything that belongs to it."""

    model: Model
    adapters: Sequence[Adapter]
    pods: Sequence[PodFacts]
    desired: Desired
    finding: Finding | None
    settings_digest: str

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
    match key.kind:
        case "Model":
            return _plan_family(index, key.name, now)
        case "SLO":
            slo = index.slo(key.name)
            return Plan(tuple(slo_status(slo, index.users_of("SLO", key.name), now)) if slo else ())
        case "AutoscalingPolicy":
            policy = index.policy(key.name)
            users = index.users_of("AutoscalingPolicy", key.name)
            return Plan(tuple(policy_status(policy, users, now)) if policy else ())


def _plan_family(index: FleetIndex, name: str, now: float) -> Plan:
    model, pods = index.model(name), index.pods_of(name)
    own = [pod for pod in pods if model is not None and pod.owner_uid == model.metadata.uid]
    orphans = [pod for pod in pods if model is None or pod.owner_uid != model.metadata.uid]
    actions = _remove_orphans(orphans, now)
    wakes = wake_times(orphans, ORPHAN_DRAIN_SECONDS, now)
    adapters, strays = _judged_adapters(index, name, model)
    if model is not None:
        actions += _plan_model(_family(index, model, adapters, own), now)
        wakes += wake_times(own, model.spec.drain_timeout, now)
    actions += [action for adapter, finding in strays for action in _stray_report(adapter, finding, now)]
    return Plan(tuple(actions), min(wakes, default=None))


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


def _family(index: FleetIndex, model: Model, adapters: Sequence[Adapter], pods: Sequence[PodFacts]) -> _Family:
    spec = model.spec
    policy = index.policy(spec.autoscaling_policy_ref.name) if spec.autoscaling_policy_ref else None
    has_slo = spec.slo_ref is not None and index.slo(spec.slo_ref.name) is not None
    finding = judge_model(model, index.adapter(model.name), policy, slo=has_slo)
    if finding is None or not finding.blocks:
        finding = index.obstacle(model) or finding
    return _Family(model, adapters, pods, desired_replicas(model, policy), finding, index.settings_digest)


def _remove_orphans(orphans: Sequence[PodFacts], now: float) -> list[Action]:
    live = [pod for pod in orphans if pod.live]
    actions = finish(orphans, ORPHAN_DRAIN_SECONDS, now)
    return actions + [retire(pod, ORPHAN_DRAIN_SECONDS, f"Model {pod.model} is gone") for pod in live]


def _plan_model(family: _Family, now: float) -> list[Action]:
    model, pods, adapters = family.model, family.pods, family.adapters
    placed = placements(model, adapters, pods)
    catalogs = {pod.name: catalog_of(adapters, placed[pod.name], pod.agent) for pod in pods if pod.live and pod.agent}
    if family.blocked:
        actions = finish(pods, model.spec.drain_timeout, now)
    else:
        actions = _pods_and_catalogs(family, catalogs, now)
    facts = ModelFacts(model, family.desired, pods, len(adapters), family.finding, family.settings_digest)
    actions += report(model, *model_status(facts, now))
    return actions + _adapter_reports(adapters, pods, placed, family.desired, now)


def _pods_and_catalogs(family: _Family, catalogs: Mapping[str, Catalog], now: float) -> list[Action]:
    model = family.model
    wanted = Wanted(pod_template(model, family.settings_digest), family.desired.replicas, model.spec.drain_timeout)

    def ready(pod: PodFacts) -> bool:
        return pod.name in catalogs and settled(pod, catalogs[pod.name])

    return plan_pods(wanted, family.pods, ready, now) + _catalog_changes(family.pods, catalogs)


def _catalog_changes(pods: Iterable[PodFacts], catalogs: Mapping[str, Catalog]) -> list[Action]:
    held = {pod.name: pod for pod in pods if pod.name in catalogs}
    return [
        SetCatalog(name, pod.uid, catalogs[name], f"{len(catalogs[name].adapters)} adapters are declared")
        for name, pod in held.items()
        if pod.agent and pod.agent.catalog_generation != catalogs[name].generation
    ]


def _adapter_reports(
    adapters: Sequence[Adapter],
    pods: Sequence[PodFacts],
    placed: Mapping[str, frozenset[str]],
    desired: Desired,
    now: float,
) -> list[Action]:
    states = _states(pods)
    holders: dict[str, set[str]] = defaultdict(set)
    for pod, names in placed.items():
        for name in names:
            holders[name].add(pod)
    live = [pod for pod in pods if pod.live]
    actions: list[Action] = []
    for adapter in adapters:
        facts = AdapterFacts(adapter, live, frozenset(holders[adapter.name]), adapter.spec.replicas, desired.replicas)
        actions += report(adapter, *adapter_status(facts, states.get(adapter.name, {}), now))
    return actions


def _states(pods: Iterable[PodFacts]) -> States:
    """What each pod's agent says of each adapter: adapter name to pod name to state."""
    states: dict[str, dict[str, AdapterState]] = defaultdict(dict)
    for pod in pods:
        for state in pod.agent.adapters if pod.agent else ():
            states[state.name][pod.name] = state
    return states


def _stray_report(adapter: Adapter, finding: Finding, now: float) -> list[Action]:
    facts = AdapterFacts(adapter, (), finding=finding)
    return report(adapter, *adapter_status(facts, {}, now))
