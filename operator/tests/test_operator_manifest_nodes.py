"""Facts of nodes: zone, spot, and every cloud's way to say that a node goes."""

from typing import Any

import pytest
from sheaf_operator.planning.manifest import NodeFacts, node_facts

CREATED = "2026-11-21T12:00:00Z"
NOON = 1795262400.0


def node(*, taints: Any = (), conditions: Any = (), labels: Any = None, **metadata: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
    return {
        "metadata": {"name": "n", "labels": labels or {}, **metadata},
        "spec": {"taints": list(taints)},
        "status": {"conditions": [*conditions, ready]},
    }


def taint(key: str, effect: str = "NoSchedule", **more: str) -> dict[str, str]:
    return {"key": key, "effect": effect, **more}


NOTICES = {
    "AWS spot interruption": (
        node(taints=[taint("aws-node-termination-handler/spot-itn", value="1234", timeAdded=CREATED)]),
        ("aws-node-termination-handler", "SpotInterruption", NOON + 120),
    ),
    "AWS spot interruption at an unknown time": (
        node(taints=[taint("aws-node-termination-handler/spot-itn")]),
        ("aws-node-termination-handler", "SpotInterruption", None),
    ),
    "AWS rebalance recommendation": (
        node(taints=[taint("aws-node-termination-handler/rebalance-recommendation", timeAdded=CREATED)]),
        ("aws-node-termination-handler", "RebalanceRecommendation", None),
    ),
    "Karpenter": (node(taints=[taint("karpenter.sh/disrupted")]), ("karpenter", "NodeDisruption", None)),
    "Karpenter before v1": (
        node(taints=[taint("karpenter.sh/disruption", value="disrupting")]),
        ("karpenter", "NodeDisruption", None),
    ),
    "GKE": (
        node(taints=[taint("cloud.google.com/impending-node-termination", timeAdded=CREATED)]),
        ("gke", "SpotPreemption", NOON + 25),
    ),
    "GKE graceful shutdown": (
        node(conditions=[{"type": "Ready", "status": "False", "reason": "KubeletNotReady",
                          "message": "node is shutting down", "lastTransitionTime": CREATED}]),
        ("kubernetes", "NodeShutdown", NOON + 15),
    ),
    "GKE host maintenance": (
        node(labels={"cloud.google.com/active-node-maintenance": "ONGOING"}),
        ("gke", "NodeMaintenance", None),
    ),
    "AKS preemption": (
        node(conditions=[{"type": "VMEventScheduled", "status": "True", "reason": "PreemptScheduled",
                          "lastTransitionTime": CREATED}]),
        ("aks", "SpotPreemption", NOON + 30),
    ),
    "AKS preemption as a condition of its own": (
        node(conditions=[{"type": "PreemptScheduled", "status": "True", "lastTransitionTime": CREATED}]),
        ("aks", "SpotPreemption", NOON + 30),
    ),
    "AKS auto-drain": (
        node(taints=[taint("remediator.kubernetes.azure.com/unschedulable")]),
        ("aks", "NodeDrain", None),
    ),
    "cluster autoscaler": (
        node(taints=[taint("ToBeDeletedByClusterAutoscaler", value="1795262400")]),
        ("cluster-autoscaler", "NodeRemoval", None),
    ),
    "out of service": (
        node(taints=[taint("node.kubernetes.io/out-of-service", "NoExecute", value="nodeshutdown", timeAdded=CREATED)]),
        ("kubernetes", "NodeOutOfService", NOON),
    ),
    "unreachable": (
        node(taints=[taint("node.kubernetes.io/unreachable", "NoExecute", timeAdded=CREATED)]),
        ("kubernetes", "NodeUnreachable", None),
    ),
    "not ready": (
        node(taints=[taint("node.kubernetes.io/not-ready", "NoExecute")]),
        ("kubernetes", "NodeNotReady", None),
    ),
    "deletion": (node(deletionTimestamp=CREATED), ("kubernetes", "NodeDeletion", None)),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTICES)
def test_every_clouds_way_to_say_that_a_node_goes(case: str):
    shown, (source, reason, deadline) = NOTICES[case]
    notice = node_facts(shown).notice
    assert notice is not None
    assert (notice.source, notice.reason, notice.deadline) == (source, reason, deadline)
    assert notice.message


STAYS = {
    "a healthy node": node(),
    "a cordon": node(taints=[taint("node.kubernetes.io/unschedulable")]) | {"spec": {"unschedulable": True}},
    "a candidate of the autoscaler": node(taints=[taint("DeletionCandidateOfClusterAutoscaler", "PreferNoSchedule")]),
    "a candidate of Karpenter": node(taints=[taint("karpenter.sh/disruption", value="candidate")]),
    "a node that has just come": node(taints=[taint("node.kubernetes.io/not-ready")]),
    "a short pause of an AKS machine": node(
        conditions=[{"type": "VMEventScheduled", "status": "True", "reason": "FreezeScheduled"}]
    ),
    "an AKS machine without events": node(conditions=[{"type": "VMEventScheduled", "status": "False"}]),
    "a spot node": node(
        taints=[taint("kubernetes.azure.com/scalesetpriority", value="spot")],
        labels={"cloud.google.com/gke-spot": "true"},
    ),
    "a node whose maintenance is planned": node(labels={"cloud.google.com/scheduled-maintenance-time": "1795262400"}),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_is_no_notice(case: str):
    assert node_facts(STAYS[case]).notice is None


def test_the_most_urgent_notice_counts():
    shown = node(taints=[taint("ToBeDeletedByClusterAutoscaler"), taint("aws-node-termination-handler/spot-itn")])
    notice = node_facts(shown).notice
    assert notice is not None
    assert notice.reason == "SpotInterruption"


def test_facts_of_a_node():
    labels = {"topology.kubernetes.io/zone": "z1", "karpenter.sh/capacity-type": "spot"}
    assert node_facts(node(labels=labels)) == NodeFacts("n", "z1", spot=True, ready=True)
    old = node(labels={"failure-domain.beta.kubernetes.io/zone": "z2", "pool": "cheap"})
    assert node_facts(old).zone == "z2"
    assert not node_facts(old).spot
    assert node_facts(old, {"pool": "cheap"}).spot
    assert node_facts(STAYS["a cordon"]).unschedulable
    assert not node_facts({}).ready
