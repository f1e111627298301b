"""Fake nodes and pods at scale, played by kwok: they cost an object each and no process."""

from __future__ import annotations

from pathlib import Path

from .binaries import binary, kwok_stages
from .cluster import CONTROL_PLANE, Cluster
from .kubectl import Object

SELECTOR = "type=kwok"
TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "250", "nvidia.com/gpu": "8"}


def start(cluster: Cluster) -> None:
    """Start kwok beside the control plane; it plays the nodes that carry the label ``type=kwok``, and their pods."""
    argv: list[str | Path] = [
        binary("kwok"),
        f"--kubeconfig={cluster.layout.pki / 'kwok.kubeconfig'}",
        f"--config={kwok_stages()}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-label-selector={SELECTOR}",
        "--v=-4",
    ]
    cluster.machine(CONTROL_PLANE).start("kwok", argv)


def add_nodes(cluster: Cluster, count: int, prefix: str = "fake") -> list[str]:
    """Add fake nodes; only pods that tolerate ``kwok.x-k8s.io/node`` go there. Returns their names."""
    names = [f"{prefix}-{index:04d}" for index in range(count)]
    cluster.kubectl.apply(*(_node(name, index) for index, name in enumerate(names)))
    return names


def remove(cluster: Cluster) -> None:
    """Remove the fake nodes, and stop kwok."""
    cluster.kubectl("delete", "nodes", "-l", SELECTOR, "--wait=true", timeout=120)
    if cluster.machine(CONTROL_PLANE).ask({}).get("kwok"):
        cluster.machine(CONTROL_PLANE).stop("kwok")


def _node(name: str, index: int) -> Object:
    labels = {
        "type": "kwok",
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": f"zone-{'abc'[index % 3]}",
        "karpenter.sh/capacity-type": "spot" if index % 2 else "on-demand",
    }
    annotations = {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"taints": [TAINT]},
        "status": {"capacity": CAPACITY, "allocatable": CAPACITY},
    }
