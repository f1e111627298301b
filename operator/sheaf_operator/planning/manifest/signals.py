"""How clouds, provisioners and Kubernetes itself say that a node will go: one table of taints, conditions and labels.

A cordon alone says nothing of the pods that run there, so it is no signal; `kubectl drain` shows in each pod, as the
condition DisruptionTarget. Candidates (DeletionCandidateOfClusterAutoscaler, a soft taint) are no signal either. Time
that is left counts from when the signal appeared, where that is told.

Sources, looked up in 2026: AWS Node Termination Handler (its taints, `--taint-node`; two minutes' notice of EC2),
Karpenter (`karpenter.sh/disrupted`, before v1 `karpenter.sh/disruption`), GKE (node termination handler's taint, and
the kubelet's graceful node shutdown; 30 s, of which pods have 15 to 25; host maintenance labels of GPU nodes), AKS
(conditions made from scheduled events; preemption has 30 s; taint of auto-drain), cluster-autoscaler, Kubernetes'
well-known taints. What agents read in metadata services comes with their state.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sheaf_crds.agent_api import AgentState

from sheaf_operator.planning.manifest.wire import items, parse_time, section, text
from sheaf_operator.planning.snapshot import Notice

Where = Literal["taint", "condition", "label"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One way in which a node says that it will go.

    Attributes:
        source: who says it.
        reason: a word for programs.
        message: what it means.
        where: in which part of the Node it is.
        key: key of the taint or label, type of the condition.
        values: accepted values of a taint or label, accepted reasons of a condition that is True; empty: any.
        effect: effect of the taint; empty: any.
        seconds: how long the node stays after that; None: not told.
    """

    source: str
    reason: str
    message: str
    where: Where
    key: str
    values: tuple[str, ...] = ()
    effect: str = ""
    seconds: float | None = None


_AWS, _KARPENTER, _GKE, _AKS = "aws-node-termination-handler", "karpenter", "gke", "aks"
_AUTOSCALER, _KUBERNETES = "cluster-autoscaler", "kubernetes"

# The most urgent first: of several signals the first one counts.
SIGNALS: tuple[Signal, ...] = (
    Signal(_KUBERNETES, "NodeOutOfService", "the node is out of service", "taint", "node.kubernetes.io/out-of-service",
           seconds=0.0),
    Signal(_KUBERNETES, "NodeShutdown", "the node's machine is shut down", "taint",
           "node.cloudprovider.kubernetes.io/shutdown", seconds=0.0),
    Signal(_GKE, "SpotPreemption", "the node's machine will be ended", "taint",
           "cloud.google.com/impending-node-termination", seconds=25.0),
    Signal(_AKS, "SpotPreemption", "the spot machine is being taken back", "condition", "PreemptScheduled",
           seconds=30.0),
    Signal(_AKS, "SpotPreemption", "the spot machine is being taken back", "condition", "VMEventScheduled",
           ("PreemptScheduled", "Preempt"), seconds=30.0),
    Signal(_AWS, "SpotInterruption", "EC2 takes the spot instance back", "taint",
           "aws-node-termination-handler/spot-itn", seconds=120.0),
    Signal(_KUBERNETES, "NodeUnreachable", "the node does not answer", "taint", "node.kubernetes.io/unreachable",
           effect="NoExecute"),
    Signal(_KUBERNETES, "NodeNotReady", "the node is not ready", "taint", "node.kubernetes.io/not-ready",
           effect="NoExecute"),
    Signal(_AWS, "InstanceTermination", "the auto scaling group ends the instance", "taint",
           "aws-node-termination-handler/asg-lifecycle-termination"),
    Signal(_AWS, "ScheduledMaintenance", "EC2 has maintenance scheduled for the instance", "taint",
           "aws-node-termination-handler/scheduled-maintenance"),
    Signal(_AWS, "RebalanceRecommendation", "EC2 sees a raised risk of taking the spot instance back", "taint",
           "aws-node-termination-handler/rebalance-recommendation"),
    Signal(_KARPENTER, "NodeDisruption", "Karpenter removes the node", "taint", "karpenter.sh/disrupted"),
    Signal(_KARPENTER, "NodeDisruption", "Karpenter removes the node", "taint", "karpenter.sh/disruption",
           ("disrupting",)),
    Signal(_AKS, "NodeTermination", "the machine is scheduled to be deleted", "condition", "TerminateScheduled"),
    Signal(_AKS, "NodeRedeployment", "the machine is scheduled to move", "condition", "RedeployScheduled"),
    Signal(_AKS, "NodeReboot", "the machine is scheduled to reboot", "condition", "RebootScheduled"),
    Signal(_AKS, "NodeTermination", "the machine has an event scheduled that ends what runs there", "condition",
           "VMEventScheduled", ("TerminateScheduled", "RedeployScheduled", "RebootScheduled", "Terminate", "Redeploy",
                                "Reboot")),
    Signal(_AKS, "NodeDrain", "AKS drains the node", "taint", "remediator.kubernetes.azure.com/unschedulable"),
    Signal(_AKS, "NodeDrain", "AKS drains the node", "taint", "remediator.aks.microsoft.com/unschedulable"),
    Signal(_GKE, "NodeMaintenance", "host maintenance has begun", "label", "cloud.google.com/active-node-maintenance",
           ("ONGOING",)),
    Signal(_AUTOSCALER, "NodeRemoval", "the cluster autoscaler removes the node", "taint",
           "ToBeDeletedByClusterAutoscaler"),
)  # fmt: skip

SHUTDOWN_MESSAGE = "shutting down"


def node_notice(node: Mapping[str, Any]) -> Notice | None:
    """The most urgent notice that the Node (as JSON) gives; None where it stays."""
    found = (
        _notice(signal, since) for signal in SIGNALS if (since := _READERS[signal.where](node, signal)) is not None
    )
    return next(found, None) or _shutdown(node) or _deletion(node)


def pod_notice(pod: Mapping[str, Any]) -> Notice | None:
    """The notice that the Pod (as JSON) gives of itself: the condition DisruptionTarget."""
    for condition in items(pod, "status", "conditions"):
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            reason = text(condition, "reason") or "Disruption"
            return Notice(_KUBERNETES, reason, text(condition, "message") or "the pod has to go", None)
    return None


def agent_notice(agent: AgentState | None) -> Notice | None:
    """The notice that the pod's agent has from the cloud's metadata service; None where it has none, or an advice."""
    told = agent.notice if agent else None
    if told is None or told.advisory:
        return None
    return Notice(f"{told.source}-metadata", told.reason, told.message, told.deadline or None)


def most_urgent(*notices: Notice | None) -> Notice | None:
    """The one whose time is up first; of those that name no time the first."""
    found = [notice for notice in notices if notice is not None]
    return min(found, key=lambda one: float("inf") if one.deadline is None else one.deadline, default=None)


def _notice(signal: Signal, since: float) -> Notice:
    deadline = since + signal.seconds if since and signal.seconds is not None else None
    return Notice(signal.source, signal.reason, signal.message, deadline)


def _taint(node: Mapping[str, Any], signal: Signal) -> float | None:
    for taint in items(node, "spec", "taints"):
        fits = not signal.values or text(taint, "value") in signal.values
        if text(taint, "key") == signal.key and fits and signal.effect in ("", text(taint, "effect")):
            return parse_time(taint.get("timeAdded"))
    return None


def _condition(node: Mapping[str, Any], signal: Signal) -> float | None:
    for condition in items(node, "status", "conditions"):
        true = text(condition, "type") == signal.key and text(condition, "status") == "True"
        if true and (not signal.values or text(condition, "reason") in signal.values):
            return parse_time(condition.get("lastTransitionTime"))
    return None


def _label(node: Mapping[str, Any], signal: Signal) -> float | None:
    labels = section(node, "metadata", "labels")
    return 0.0 if labels.get(signal.key) in signal.values else None


_READERS: Mapping[Where, Callable[[Mapping[str, Any], Signal], float | None]] = {
    "taint": _taint,
    "condition": _condition,
    "label": _label,
}


def _shutdown(node: Mapping[str, Any]) -> Notice | None:
    """The kubelet's graceful node shutdown: Ready is False and says so."""
    conditions: Sequence[Mapping[str, Any]] = items(node, "status", "conditions")
    for condition in conditions:
        if text(condition, "type") == "Ready" and SHUTDOWN_MESSAGE in text(condition, "message"):
            since = parse_time(condition.get("lastTransitionTime"))
            return Notice(_KUBERNETES, "NodeShutdown", "the node shuts down", since + 15.0 if since else None)
    return None


def _deletion(node: Mapping[str, Any]) -> Notice | None:
    deleted = section(node, "metadata").get("deletionTimestamp")
    return Notice(_KUBERNETES, "NodeDeletion", "the node is being deleted", None) if deleted else None
