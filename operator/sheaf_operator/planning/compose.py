"""The whole plan: every Model by itself, then what is said of every object. Repairs come first.

Each pass decides from the snapshot alone. What an earlier life of the operator left behind (pods of no Model, pods
that failed, half a rollout, statuses never written) is mended by the same rules that make things in the first place.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sheaf_crds import Adapter, AutoscalingPolicy, KubeObject, Model
from sheaf_crds.agent_api import AdapterState, Catalog

from sheaf_operator.planning.actions import Action, Plan, SetCatalog
from sheaf_operator.planning.catalogs import catalog_of, placements, settled
from sheaf_operator.planning.pods import Wanted, finish, plan_pods, retire, wake_times
from sheaf_operator.planning.refs import Findings, judge
from sheaf_operator.planning.report import report, usage_statuses
from sheaf_operator.planning.snapshot import ClusterSnapshot, PodFacts
from sheaf_operator.planning.status_adapter import AdapterFacts, adapter_status
from sheaf_operator.planning.status_model import ModelFacts, model_status
from sheaf_operator.planning.template import Desired, desired_replicas, pod_template

ORPHAN_DRAIN_SECONDS = 30.0

States = Mapping[str, Mapping[str, AdapterState]]


@dataclass(frozen=True, slots=True)
class _Fleet:
    """The snapshot, sorted by what belongs together."""

    models: Mapping[str, Model]
    adapters: Mapping[str, Sequence[Adapter]]
    policies: Mapping[str, AutoscalingPolicy]
    pods: Mapping[str, Sequence[PodFacts]]
    orphans: Sequence[PodFacts]
    findings: Findings


def plan(snapshot: ClusterSnapshot, now: float) -> Plan:
    """Everything to do now for one namespace, with reasons; nothing where all is as declared.

    Args:
        snapshot: what was observed.
        now: Unix seconds.
    """
    seen = _without_deleted(snapshot)
    fleet = _sort(seen)
    actions = _remove_orphans(fleet, now)
    wakes = wake_times(fleet.orphans, ORPHAN_DRAIN_SECONDS, now)
    for model in fleet.models.values():
        actions += _plan_model(model, fleet, now)
        wakes += wake_times(fleet.pods[model.name], model.spec.drain_timeout, now)
    actions += _unplaced_adapters(seen, fleet, now)
    actions += usage_statuses(seen, now)
    return Plan(tuple(actions), min(wakes, default=None))


def _without_deleted(snapshot: ClusterSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(
        tuple(filter(_stays, snapshot.models)),
        tuple(filter(_stays, snapshot.adapters)),
        tuple(filter(_stays, snapshot.slos)),
        tuple(filter(_stays, snapshot.policies)),
        tuple(sorted(snapshot.pods, key=lambda pod: pod.name)),
    )


def _stays(item: KubeObject) -> bool:
    return item.metadata.deletion_timestamp is None


def _sort(snapshot: ClusterSnapshot) -> _Fleet:
    findings = judge(snapshot)
    models = {model.name: model for model in snapshot.models}
    adapters: dict[str, list[Adapter]] = defaultdict(list)
    for adapter in snapshot.adapters:
        if adapter.name not in findings.adapters:
            adapters[adapter.spec.model_ref.name].append(adapter)
    pods: dict[str, list[PodFacts]] = defaultdict(list)
    orphans: list[PodFacts] = []
    for pod in snapshot.pods:
        owner = models.get(pod.model)
        (pods[pod.model] if owner and owner.metadata.uid == pod.owner_uid else orphans).append(pod)
    policies = {policy.name: policy for policy in snapshot.policies}
    return _Fleet(models, adapters, policies, pods, orphans, findings)


def _remove_orphans(fleet: _Fleet, now: float) -> list[Action]:
    live = [pod for pod in fleet.orphans if pod.live]
    actions = finish(fleet.orphans, ORPHAN_DRAIN_SECONDS, now)
    return actions + [retire(pod, ORPHAN_DRAIN_SECONDS, f"Model {pod.model} is gone") for pod in live]


def _plan_model(model: Model, fleet: _Fleet, now: float) -> list[Action]:
    pods, adapters = fleet.pods[model.name], fleet.adapters[model.name]
    policy = fleet.policies.get(model.spec.autoscaling_policy_ref.name) if model.spec.autoscaling_policy_ref else None
    desired = desired_replicas(model, policy)
    placed = placements(model, adapters, pods)
    catalogs = {pod.name: catalog_of(adapters, placed[pod.name], pod.agent) for pod in pods if pod.live and pod.agent}
    finding = fleet.findings.models.get(model.name)
    if fleet.findings.serves_model(model.name):
        actions = _pods_and_catalogs(model, desired, pods, catalogs, now)
    else:
        actions = finish(pods, model.spec.drain_timeout, now)
    facts = ModelFacts(model, desired, pods, len(adapters), finding)
    actions += report(model, *model_status(facts, now))
    return actions + _adapter_reports(adapters, pods, placed, desired, now)


def _pods_and_catalogs(
    model: Model, desired: Desired, pods: Sequence[PodFacts], catalogs: Mapping[str, Catalog], now: float
) -> list[Action]:
    wanted = Wanted(pod_template(model), desired.replicas, model.spec.drain_timeout)

    def ready(pod: PodFacts) -> bool:
        return pod.name in catalogs and settled(pod, catalogs[pod.name])

    return plan_pods(wanted, pods, ready, now) + _catalog_changes(pods, catalogs)


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


def _unplaced_adapters(snapshot: ClusterSnapshot, fleet: _Fleet, now: float) -> list[Action]:
    actions: list[Action] = []
    for adapter in snapshot.adapters:
        finding = fleet.findings.adapters.get(adapter.name)
        if finding:
            facts = AdapterFacts(adapter, (), finding=finding)
            actions += report(adapter, *adapter_status(facts, {}, now))
    return actions
