"""What a Pod and a Node, as the API server shows them, mean to the planner."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sheaf_crds.agent_api import AgentState

from sheaf_operator.planning.manifest.containers import ENGINE
from sheaf_operator.planning.manifest.pod import SPOT_ANNOTATION, STARTUP_ANNOTATION, ZONE_ANNOTATION
from sheaf_operator.planning.manifest.scheduling import MODEL_LABEL, TEMPLATE_LABEL, ZONE_LABEL, spot_labels
from sheaf_operator.planning.manifest.signals import agent_notice, most_urgent, node_notice, pod_notice
from sheaf_operator.planning.manifest.troubles import STARTS_SLOWLY, Trouble, backs_off, container_trouble, shorten
from sheaf_operator.planning.manifest.wire import count, items, parse_time, section, text
from sheaf_operator.planning.snapshot import Notice, Phase, PodFacts

_PREEMPTION = re.compile(r"\.? (no new claims to deallocate, )?preemption: .*$")
_NUMBER = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")
OLD_ZONE_LABEL = "failure-domain.beta.kubernetes.io/zone"
_ENDED_MEND = {
    "Evicted": "give the pod larger requests and limits in the chart's resources, or the node more room",
    "UnexpectedAdmissionError": "the node had no device left; it is tried elsewhere",
}


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What matters of a node. `ready` is the kubelet's word, `unschedulable` a cordon, `notice` that it will go."""

    name: str
    zone: str = ""
    spot: bool = False
    notice: Notice | None = None
    ready: bool = False
    unschedulable: bool = False


def node_facts(node: Mapping[str, Any], extra_spot_labels: Mapping[str, str] | None = None) -> NodeFacts:
    """The facts of a Node (as JSON).

    Args:
        node: the object.
        extra_spot_labels: labels that mark spot nodes beside those of the clouds (`PodSettings.spot_labels`).
    """
    labels = section(node, "metadata", "labels")
    return NodeFacts(
        name=text(section(node, "metadata"), "name"),
        zone=text(labels, ZONE_LABEL) or text(labels, OLD_ZONE_LABEL),
        spot=any(labels.get(key) in values for key, values in spot_labels(extra_spot_labels or {})),
        notice=node_notice(node),
        ready=_condition(node, "Ready").get("status") == "True",
        unschedulable=section(node, "spec").get("unschedulable") is True,
    )


def pod_facts(pod: Mapping[str, Any], node: NodeFacts | None, agent: AgentState | None, now: float) -> PodFacts:
    """The facts of a Pod (as JSON).

    Args:
        pod: the object.
        node: the node that it runs on; None where it has none or the node is not known.
        agent: what its agent said last; None where it says nothing.
        now: Unix seconds.
    """
    metadata, labels = section(pod, "metadata"), section(pod, "metadata", "labels")
    asked_spot = section(metadata, "annotations").get(SPOT_ANNOTATION) == "true"
    phase = _phase(pod, agent)
    trouble = _trouble(pod, node, phase, now)
    return PodFacts(
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        model=text(labels, MODEL_LABEL),
        owner_uid=_owner_uid(metadata),
        template_hash=text(labels, TEMPLATE_LABEL),
        phase=phase,
        ready=phase == "Ready",
        created_at=parse_time(metadata.get("creationTimestamp")),
        ended_at=_ended_at(pod) if phase == "Failed" else 0.0,
        restarts=sum(count(status, "restartCount") for status in _statuses(pod)),
        reason=trouble.reason,
        message=trouble.message,
        node=text(section(pod, "spec"), "nodeName"),
        zone=node.zone if node else text(section(metadata, "annotations"), ZONE_ANNOTATION),
        spot=asked_spot or (node is not None and node.spot),
        agent=agent,
        notice=most_urgent(pod_notice(pod), node.notice if node else None, agent_notice(agent)),
        scheduled_at=_scheduled_at(pod),
        startup_limit=_seconds(text(section(metadata, "annotations"), STARTUP_ANNOTATION)),
        backs_off=backs_off(_engine(pod)),
        engine_restarts=count(_engine(pod), "restartCount"),
    )


def _scheduled_at(pod: Mapping[str, Any]) -> float:
    scheduled = _condition(pod, "PodScheduled")
    return parse_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else 0.0


def _seconds(written: str) -> float:
    """The number, or 0 of anything else that somebody wrote there."""
    return float(written) if _NUMBER.fullmatch(written) else 0.0


def _owner_uid(metadata: Mapping[str, Any]) -> str:
    owners = items(metadata, "ownerReferences")
    return next((text(owner, "uid") for owner in owners if owner.get("controller") is True), "")


def _statuses(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*items(pod, "status", "initContainerStatuses"), *items(pod, "status", "containerStatuses")]


def _engine(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((status for status in _statuses(pod) if text(status, "name") == ENGINE), {})


def _condition(value: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((one for one in items(value, "status", "conditions") if text(one, "type") == kind), {})


def _phase(pod: Mapping[str, Any], agent: AgentState | None) -> Phase:
    if section(pod, "metadata").get("deletionTimestamp"):
        return "Terminating"
    if text(section(pod, "status"), "phase") in ("Failed", "Succeeded"):
        return "Failed"
    if _condition(pod, "Ready").get("status") == "True" or _serves_unheard(pod, agent):
        return "Ready"
    started = any(_has_started(status) for status in items(pod, "status", "containerStatuses"))
    return "Starting" if started else "Pending"


def _serves_unheard(pod: Mapping[str, Any], agent: AgentState | None) -> bool:
    """Whether the pod serves although its node is silent: Kubernetes then takes back Ready alone, the agent answers."""
    gates = [text(gate, "conditionType") for gate in items(pod, "spec", "readinessGates")]
    said = all(_condition(pod, kind).get("status") == "True" for kind in ("ContainersReady", *gates))
    return said and agent is not None and agent.engine == "Ready"


def _has_started(status: Mapping[str, Any]) -> bool:
    return bool(section(status, "state", "running") or section(status, "lastState") or count(status, "restartCount"))


def _ended_at(pod: Mapping[str, Any]) -> float:
    ends = [parse_time(section(status, "state", "terminated").get("finishedAt")) for status in _statuses(pod)]
    return max([*ends, parse_time(_condition(pod, "Ready").get("lastTransitionTime"))])


def _trouble(pod: Mapping[str, Any], node: NodeFacts | None, phase: Phase, now: float) -> Trouble:
    if phase == "Failed":
        return _ended(pod)
    if phase == "Ready":
        return Trouble()
    if text(section(pod, "spec"), "nodeName"):
        return _lost_node(pod, node, phase) or _running_trouble(pod, now)
    return _unscheduled(pod)


def _ended(pod: Mapping[str, Any]) -> Trouble:
    status = section(pod, "status")
    reason = text(status, "reason") or container_trouble(pod).reason or "PodEnded"
    said = " ".join(text(status, "message").split()) or container_trouble(pod).message or "the pod has ended"
    mend = _ENDED_MEND.get(reason, "")
    return Trouble(reason, f"{shorten(said)}; {mend}" if mend else shorten(said))


def _lost_node(pod: Mapping[str, Any], node: NodeFacts | None, phase: Phase) -> Trouble | None:
    name = text(section(pod, "spec"), "nodeName")
    if node is None:
        return Trouble("NodeGone", f"node {name} is gone") if phase == "Terminating" else None
    return None if node.ready else Trouble("NodeNotReady", f"node {name} is not ready; its kubelet does not report")


def _running_trouble(pod: Mapping[str, Any], now: float) -> Trouble:
    trouble = container_trouble(pod)
    since = parse_time(_condition(pod, "PodScheduled").get("lastTransitionTime"))
    if trouble.reason or not since or now < since + STARTS_SLOWLY or not _creating(pod):
        return trouble
    look = f"`kubectl describe pod {text(section(pod, 'metadata'), 'name')}` shows what it waits for"
    return Trouble("ContainerCreating", f"containers are not created; a volume or secret may be missing: {look}")


def _creating(pod: Mapping[str, Any]) -> bool:
    waiting = [text(section(status, "state", "waiting"), "reason") for status in _statuses(pod)]
    return bool(waiting) and all(reason in ("ContainerCreating", "PodInitializing") for reason in waiting)


def _unscheduled(pod: Mapping[str, Any]) -> Trouble:
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False":
        return Trouble()
    said = _PREEMPTION.sub("", " ".join(text(condition, "message").split()))
    said = shorten(said) or "no node takes the pod"
    mend = "add nodes, lower the requests, or correct accelerators, spot or nodeSelector"
    return Trouble(text(condition, "reason") or "Unschedulable", f"{said.rstrip('.')}; {mend}")
