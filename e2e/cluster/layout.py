"""Where a cluster keeps its files, and the addresses and names of its parts; all of it follows from the state folder.

Addresses of the cluster in slot S: 10.S.0.0/24 holds the machines (.1 control plane, .11 and up the nodes, .254 this
host), 10.S.64.0/18 the pods (one /24 a node), 10.S.128.0/17 the Services. The slot is the first free one, beginning at a
place that the state folder's path determines, so two clusters live side by side.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ClusterError
from .shell import run

SLOTS = range(100, 200)
LONGEST_SOCKET = 107  # bytes of a Unix socket's path
API_PORT = 6443


@dataclass(frozen=True)
class NodeSpec:
    """One node as it is asked for: its place among the nodes (from 1), its labels, its extended resources."""

    name: str
    index: int
    labels: tuple[tuple[str, str], ...] = ()
    resources: tuple[tuple[str, str], ...] = ()


def _gpu_node(name: str, index: int, zone: str, capacity: str) -> NodeSpec:
    labels = {
        "topology.kubernetes.io/region": "region-1",
        "topology.kubernetes.io/zone": zone,
        "node.kubernetes.io/instance-type": "gpu-4x",
        "karpenter.sh/capacity-type": capacity,
        "nvidia.com/gpu.product": "NVIDIA-L4",
        "cloud.google.com/gke-accelerator": "nvidia-l4",
    }
    return NodeSpec(name, index, tuple(labels.items()), (("nvidia.com/gpu", "4"),))


NODES = (
    _gpu_node("node-a", 1, "zone-a", "on-demand"),
    _gpu_node("node-b", 2, "zone-b", "spot"),
    _gpu_node("node-c", 3, "zone-c", "spot"),
)


def default_state() -> Path:
    """``SHEAF_E2E_STATE``, or ``${XDG_STATE_HOME:-~/.local/state}/sheaf/cluster``."""
    if named := os.environ.get("SHEAF_E2E_STATE"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sheaf" / "cluster"


@dataclass(frozen=True)
class Layout:
    """Paths and addresses of one cluster."""

    state: Path

    @cached_property
    def tag(self) -> str:
        """Six hex digits that tell this cluster's host interface and cgroup from another's."""
        return hashlib.sha256(str(self.state).encode()).hexdigest()[:6]

    @property
    def host_link(self) -> str:
        return f"sheaf-{self.tag}"

    @property
    def cgroup(self) -> str:
        return f"sheaf-{self.tag}"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def record(self) -> Path:
        """What ``up`` decided: slot and nodes."""
        return self.state / "cluster.json"

    def machine(self, name: str) -> Path:
        """The folder of one machine (a node, or ``control-plane``)."""
        return self.state / "machines" / name

    def init_socket(self, name: str) -> Path:
        return self.machine(name) / "init.sock"

    def check(self) -> None:
        """Raises ``ClusterError`` where the state folder's path is too long for the sockets in it."""
        longest = str(self.init_socket("control-plane"))
        if len(longest.encode()) > LONGEST_SOCKET:
            raise ClusterError(
                f"the state folder {self.state} has too long a path; choose a shorter one by --state DIR"
            )

    @property
    def facts(self) -> dict[str, Any]:
        """The record of the last ``up``; empty when there was none."""
        try:
            facts: dict[str, Any] = json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return facts


@dataclass(frozen=True)
class Network:
    """The addresses of the cluster in one slot."""

    slot: int

    @property
    def machines(self) -> str:
        return f"10.{self.slot}.0.0/24"

    @property
    def pods(self) -> str:
        return f"10.{self.slot}.64.0/18"

    @property
    def services(self) -> str:
        return f"10.{self.slot}.128.0/17"

    @property
    def api_service(self) -> str:
        return f"10.{self.slot}.128.1"

    @property
    def host(self) -> str:
        return f"10.{self.slot}.0.254"

    @property
    def control_plane(self) -> str:
        return f"10.{self.slot}.0.1"

    @property
    def api_url(self) -> str:
        return f"https://{self.control_plane}:{API_PORT}"

    def node(self, index: int) -> str:
        return f"10.{self.slot}.0.{10 + index}"

    def pods_of(self, index: int) -> str:
        return f"10.{self.slot}.{64 + index}.0/24"


def free_slot(layout: Layout) -> int:
    """The first slot whose addresses no route of this host overlaps.

    Raises:
        ClusterError: all hundred are taken.
    """
    begin = int(layout.tag, 16) % len(SLOTS)
    taken = _routed_networks()
    order: list[int] = [*SLOTS][begin:] + [*SLOTS][:begin]
    for slot in order:
        if not any(ipaddress.ip_network(f"10.{slot}.0.0/16").overlaps(network) for network in taken):
            return slot
    raise ClusterError("no free 10.100.0.0/16 .. 10.199.0.0/16 network: `ip route` shows what holds them")


def _routed_networks() -> list[ipaddress.IPv4Network]:
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]))
    named = [route["dst"] for route in routes if route["dst"][0].isdigit()]
    networks = [ipaddress.IPv4Network(name, strict=False) for name in named]
    return [network for network in networks if network.prefixlen > 0]
