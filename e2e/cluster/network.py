"""Links and routes: one bridge, inside the control plane's namespace, that every machine and this host are plugged into.

The host gets one link and a few routes, which vanish with the control plane; no iptables rule and no bridge of the host
is touched. Pods hang on routed links of their own (CNI ``ptp``), so that every packet passes their node's kube-proxy
rules, also between two pods of one node. Nothing leads out of the cluster: a test that needs the internet is no test.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .layout import Layout, Network, NodeSpec
from .machines import Machine
from .shell import run

BRIDGE = "machines"
HOST_PORT = "host"


def _ip(machine: Machine, *words: str) -> None:
    machine.inside(["ip", *words])


def _sysctl(machine: Machine) -> None:
    names = ("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
    machine.inside(["sysctl", "-q", "-w", *names])


def plug_host(control_plane: Machine, layout: Layout, network: Network) -> None:
    """Make the bridge, with its address, and plug this host into it."""
    link = layout.host_link
    for words in (
        ("link", "set", "lo", "up"),
        ("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"),
        ("address", "add", f"{network.control_plane}/24", "dev", BRIDGE),
        ("link", "set", BRIDGE, "up"),
    ):
        _ip(control_plane, *words)
    peer = ["peer", "name", HOST_PORT, "netns", str(control_plane.pid)]
    run(["ip", "link", "add", link, "type", "veth", *peer])
    _ip(control_plane, "link", "set", HOST_PORT, "master", BRIDGE, "up")
    run(["ip", "address", "add", f"{network.host}/24", "dev", link])
    run(["ip", "link", "set", link, "up"])


def plug_node(control_plane: Machine, node: Machine, spec: NodeSpec, network: Network) -> None:
    """Plug a node's ``eth0`` into the bridge (a port of the node's name) and give it its address."""
    _ip(control_plane, "link", "add", spec.name, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
    _ip(control_plane, "link", "set", spec.name, "master", BRIDGE, "up")
    _ip(node, "link", "set", "lo", "up")
    _ip(node, "address", "add", f"{network.node(spec.index)}/24", "dev", "eth0")
    _ip(node, "link", "set", "eth0", "up")
    _ip(node, "route", "add", network.services, "dev", "eth0")
    _sysctl(node)


def route(control_plane: Machine, nodes: Sequence[tuple[Machine, NodeSpec]], network: Network) -> None:
    """Lead every machine to every node's pods, and this host to the Services too (by way of the first node)."""
    for _, spec in nodes:
        words = ["route", "replace", network.pods_of(spec.index), "via", network.node(spec.index)]
        run(["ip", *words])
        _ip(control_plane, *words)
        for other, other_spec in nodes:
            if other_spec != spec:
                _ip(other, *words)
    if nodes:
        run(["ip", "route", "replace", network.services, "via", network.node(nodes[0][1].index)])


def set_port(control_plane: Machine, name: str, *, up: bool) -> None:
    """Pull a machine's cable, or plug it in again; its own interface keeps addresses and routes."""
    _ip(control_plane, "link", "set", name, "up" if up else "down")


def write_cni(folder: Path, spec: NodeSpec, network: Network) -> Path:
    """The node's CNI configuration; returns the folder that holds it."""
    data = folder / "cni-addresses"
    config = {
        "cniVersion": "0.4.0",
        "name": "sheaf",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(data),
                    "ranges": [[{"subnet": network.pods_of(spec.index)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    conf = folder / "cni"
    conf.mkdir(parents=True, exist_ok=True)
    (conf / "10-sheaf.conflist").write_text(json.dumps(config, indent=1))
    return conf
