"""What a node shows when its cloud is about to take it away, as each cloud's own components write it.

A notice is taints, conditions, labels, a cordon and events; giving it writes exactly that, and nothing is drained (who
drains is the cloud's handler, or nobody: ``Faults.drain``). Sources:

- AWS Node Termination Handler: https://github.com/aws/aws-node-termination-handler/blob/main/pkg/node/node.go (taint keys,
  the event's id as value, labels) and .../pkg/observability/k8s-events.go (event reasons, component).
- Karpenter: https://github.com/kubernetes-sigs/karpenter/blob/main/pkg/apis/v1/taints.go; before v1 the taint was
  ``karpenter.sh/disruption=disrupting`` (https://karpenter.sh/v0.32/concepts/disruption/).
- GKE: https://docs.cloud.google.com/kubernetes-engine/docs/concepts/handle-disruption-gpu-tpu (accelerator nodes: taint
  and label); spot VMs go through the kubelet's graceful shutdown
  (https://docs.cloud.google.com/kubernetes-engine/docs/concepts/spot-vms), whose words are the kubelet's own.
- AKS: https://learn.microsoft.com/azure/aks/node-problem-detector (conditions),
  https://learn.microsoft.com/azure/aks/node-auto-drain (taint), and the message's shape as the Karpenter provider reads it:
  https://github.com/Azure/karpenter-provider-azure (pkg/controllers, interruption). The advisory comes with the same
  condition and reason as the notice; only the message tells them apart.
- Cluster Autoscaler: https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/utils/taints/taints.go (the
  value is the time in seconds).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass

from .kubectl import Kubectl, Object

EVENT_ID = "spot-itn-5bd9e5ac83ea4ad9"
AKS_EVENT_ID = "40B7BD88-C56E-44E4-93F6-75CEDACE2869"


@dataclass(frozen=True)
class Condition:
    """A node condition; ``usual`` is what it says when nothing is the matter."""

    type: str
    reason: str
    message: str
    status: str = "True"
    usual: tuple[str, str, str] = ("False", "NoVMEventScheduled", "VM has no scheduled event")


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the node."""

    reason: str
    message: str
    component: str


@dataclass(frozen=True)
class Notice:
    """Everything that one component writes. Taints are ``(key, value, effect)``. ``{at}`` and ``{unix}`` stand for the
    deadline in messages and values. ``leaves``: whether the node really goes (an advisory does not say so)."""

    taints: tuple[tuple[str, str, str], ...] = ()
    conditions: tuple[Condition, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    events: tuple[Event, ...] = ()
    cordon: bool = False
    leaves: bool = True


def _nth(kind: str, reason: str, message: str, *, leaves: bool = True) -> Notice:
    return Notice(
        taints=((f"aws-node-termination-handler/{kind}", EVENT_ID, "NoSchedule"),),
        labels=(("aws-node-termination-handler/event-id", EVENT_ID),),
        events=(Event(reason, message, "aws-node-termination-handler"),),
        cordon=True,
        leaves=leaves,
    )


def _aks(event: str, message: str, *, leaves: bool = True) -> Notice:
    message = f"{message} {{at}}. For more information, see https://aka.ms/aks/scheduledevents. EventId: {AKS_EVENT_ID}"
    preemption = Condition(
        "PreemptionScheduled", "SpotEvictionIncoming", message, usual=("False", "NoSpotEviction", "no spot eviction")
    )
    return Notice(
        taints=(("remediator.kubernetes.azure.com/unschedulable", "", "NoSchedule"),) if leaves else (),
        conditions=(Condition("VMEventScheduled", event, message), preemption),
        events=(Event(event, message, "custom-plugin-monitor"),),
        cordon=leaves,
        leaves=leaves,
    )


NOTICES: Mapping[str, Notice] = {
    "aws-spot": _nth(
        "spot-itn",
        "SpotInterruption",
        "Spot Instance interruption notice was sent by AWS. Instance will be interrupted at {at}",
    ),
    "aws-rebalance": _nth(
        "rebalance-recommendation", "RebalanceRecommendation", "Rebalance recommendation received", leaves=False
    ),
    "aws-maintenance": _nth("scheduled-maintenance", "ScheduledEvent", "Scheduled maintenance at {at}"),
    "aws-scale-in": _nth("asg-lifecycle-termination", "SQSTermination", "ASG lifecycle termination received"),
    "karpenter": Notice(taints=(("karpenter.sh/disrupted", "", "NoSchedule"),)),
    "karpenter-v1beta1": Notice(taints=(("karpenter.sh/disruption", "disrupting", "NoSchedule"),)),
    "gke-maintenance": Notice(
        taints=(("cloud.google.com/impending-node-termination", "", "NoSchedule"),),
        labels=(("cloud.google.com/active-node-maintenance", "ONGOING"),),
    ),
    "gke-spot": Notice(
        conditions=(
            Condition(
                "Ready",
                "KubeletNotReady",
                "node is shutting down",
                status="False",
                usual=("True", "KubeletReady", "kubelet is posting ready status"),
            ),
        ),
        events=(Event("NodeNotReady", "Node status is now: NodeNotReady", "kubelet"),),
    ),
    "aks-spot": _aks("PreemptScheduled", "Preempt Scheduled:"),
    "aks-rebalance": _aks("PreemptScheduled", "SpotRebalanceRecommendation Advisory:", leaves=False),
    "autoscaler": Notice(taints=(("ToBeDeletedByClusterAutoscaler", "{unix}", "NoSchedule"),), cordon=False),
}


def give(kubectl: Kubectl, node: str, name: str, seconds: float = 120) -> None:
    """Show the notice ``name`` (a key of ``NOTICES``) on a node, its deadline ``seconds`` from now."""
    notice, words = NOTICES[name], _deadline(seconds)
    for event in notice.events:
        kubectl("create", "-f", "-", stdin=json.dumps(_event(node, event, words)))
    if notice.labels:
        kubectl("label", "node", node, "--overwrite", *(f"{key}={value}" for key, value in notice.labels))
    _set_conditions(kubectl, node, [_given(condition, words) for condition in notice.conditions])
    for key, value, effect in notice.taints:
        kubectl("taint", "node", node, "--overwrite", f"{key}={value.format(**words)}:{effect}")
    if notice.cordon:
        kubectl("cordon", node)


def clear(kubectl: Kubectl, node: Object) -> None:
    """Take back every notice that a node (as the API server shows it) carries, and the cordon."""
    name, notices = node["metadata"]["name"], NOTICES.values()
    taints = {taint["key"] for taint in node["spec"].get("taints", ())}
    if mine := sorted({key for notice in notices for key, _, _ in notice.taints} & taints):
        kubectl("taint", "node", name, *(f"{key}-" for key in mine))
    if labels := sorted({key for notice in notices for key, _ in notice.labels} & set(node["metadata"]["labels"])):
        kubectl("label", "node", name, *(f"{key}-" for key in labels))
    _set_conditions(kubectl, name, [_usual(condition) for condition in _given_on(node)])
    if node["spec"].get("unschedulable"):
        kubectl("uncordon", name)


def _given_on(node: Object) -> list[Condition]:
    """The notices' conditions that a node shows, but for Ready, which is the kubelet's to mend."""
    every = {c.type: c for notice in NOTICES.values() for c in notice.conditions if c.type != "Ready"}
    shown = [entry["type"] for entry in node["status"]["conditions"] if entry["status"] == "True"]
    return [every[kind] for kind in shown if kind in every]


def _deadline(seconds: float) -> dict[str, str]:
    at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return {"at": at.strftime("%a, %d %b %Y %H:%M:%S GMT"), "unix": str(int(at.timestamp()))}


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _given(condition: Condition, words: Mapping[str, str]) -> dict[str, str]:
    return _written(condition.type, condition.status, condition.reason, condition.message.format(**words))


def _usual(condition: Condition) -> dict[str, str]:
    return _written(condition.type, *condition.usual)


def _written(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    now = _now()
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }


def _set_conditions(kubectl: Kubectl, node: str, conditions: list[dict[str, str]]) -> None:
    if conditions:
        change = json.dumps({"status": {"conditions": conditions}})
        kubectl("patch", "node", node, "--subresource=status", "--type=strategic", "-p", change)


def _event(node: str, event: Event, words: Mapping[str, str]) -> dict[str, object]:
    now = _now()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{node}.", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "reason": event.reason,
        "message": event.message.format(**words),
        "type": "Warning",
        "source": {"component": event.component, "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
