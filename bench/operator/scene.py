"""Where the benchmark plays: a control plane without real nodes, kwok's fake nodes, one process of agents, operators.

Operators and agents run as daemons in the control plane's own network namespace: fake pods have loopback addresses
there, so nothing of this host is routed, and everything ends with the control plane. A cluster that runs already in
the state folder is used and left as it was found, but for the namespaces, which are removed.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from client import Api, Raw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "e2e"))

from cluster import kwok, machines  # noqa: E402 - found in the folder above
from cluster.binaries import binary, kwok_stages  # noqa: E402
from cluster.cluster import CONTROL_PLANE, Cluster  # noqa: E402
from cluster.layout import default_state  # noqa: E402
from cluster.pins import MODULES  # noqa: E402
from cluster.shell import say  # noqa: E402

__all__ = ["MODULES", "Daemon", "Scene", "default_state", "say", "scene"]
HERE = Path(__file__).parent
TOKEN = "bench-operator"
PODS_PER_NODE = 250
LEASE_SECONDS = 12
OPERATOR_PORT = 18080
AGENT_PORT = 8001
FILES = "200000"
KEPT_ON = ("kwok.x-k8s.io/node", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass
class Daemon:
    """A running operator."""

    scene: "Scene"
    name: str

    @property
    def pid(self) -> int:
        """Its process id as this host counts."""
        return self.scene.pid_of(self.name)

    @property
    def url(self) -> str:
        """Where its metrics are."""
        return f"http://{self.scene.address}:{OPERATOR_PORT}"

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self.scene.cluster.layout.logs / f"{CONTROL_PLANE}.{self.name}.log"

    def stop(self) -> None:
        """End it, and wait for that."""
        self.scene.machine.stop(self.name, timeout=60)


@dataclass
class Scene:
    """A cluster that is up, and the API as its administrator."""

    cluster: Cluster
    api: Api

    @property
    def machine(self) -> machines.Machine:
        """The control plane."""
        return self.cluster.machine(CONTROL_PLANE)

    @property
    def address(self) -> str:
        """The control plane's address."""
        return self.cluster.network.control_plane

    def pid_of(self, name: str) -> int:
        """The process id of a daemon as this host counts."""
        inner = self.machine.ask({})[name]
        return next(pid for pid in machines.children(self.machine.pid) if _pids(pid)[-1] == inner)

    def operator(self, name: str, namespace: str, profile: Path | None = None) -> Daemon:
        """Start an operator of a namespace."""
        folder = self.cluster.state / "bench"
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(TOKEN)
        (folder / "operator.json").write_text(json.dumps(_config(namespace, folder / "token")))
        words = ["-m", "sheaf_operator"] if profile is None else [str(HERE / "sampled.py"), str(profile)]
        words += ["--config", str(folder / "operator.json"), "--kubeconfig", str(self.cluster.layout.kubeconfig)]
        self.start(name, words)
        return Daemon(self, name)

    def start(self, name: str, words: list[str]) -> None:
        """Start a Python daemon on the control plane."""
        path = os.pathsep.join(str(ROOT / part) for part in ("crds", "operator"))
        limit = ["prlimit", f"--nofile={_files()}"]
        self.machine.start(name, [*limit, sys.executable, *words], {"PYTHONPATH": path})

    async def namespace(self, name: str) -> None:
        """Make a namespace that pods can run in."""
        await self.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        while True:  # the controller manager makes the account that every pod needs
            accounts = await self.api.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts")
            if accounts["items"]:
                return
            await asyncio.sleep(0.2)


@asynccontextmanager
async def scene(state: Path, pods: int) -> AsyncIterator[Scene]:
    """A cluster with room for so many fake pods, their agents, and Sheaf's kinds."""
    cluster = Cluster(state, owned=True)
    found = cluster.running
    if not found:
        cluster.up(())
    try:
        async with Api(cluster.network.api_url, cluster.layout.pki) as api:
            made = Scene(cluster, api)
            _fake_nodes(made, 1 + pods * 5 // 4 // PODS_PER_NODE)
            cluster.kubectl("apply", "--server-side", "-f", ROOT / "crds", timeout=120)
            made.start(
                "agents",
                [str(HERE / "agents.py"), "--server", cluster.network.api_url, "--pki", str(cluster.layout.pki)],
            )
            yield made
            if found:
                await _leave(made)
    finally:
        if not found:
            cluster.down()


async def _leave(made: Scene) -> None:
    """Take away from a cluster that stays what was brought."""
    found = await made.api.call("GET", "/api/v1/namespaces", labelSelector="kubernetes.io/metadata.name")
    names = [item["metadata"]["name"] for item in found["items"]]
    for name in (name for name in names if name.startswith("bench-")):
        made.cluster.kubectl("delete", "namespace", name, timeout=900)
    for daemon in [name for name, pid in made.machine.ask({}).items() if pid and name.startswith(("agents", "op-"))]:
        made.machine.stop(daemon)
    kwok.remove(made.cluster)


def _fake_nodes(made: Scene, count: int) -> None:
    say(f"{count} fake nodes")
    argv: list[str | Path] = [
        binary("kwok"),
        f"--kubeconfig={made.cluster.layout.pki / 'kwok.kubeconfig'}",
        f"--config={kwok_stages()}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-label-selector={kwok.SELECTOR}",
        f"--node-lease-duration-seconds={LEASE_SECONDS}",
        "--v=4",
    ]
    made.machine.start("kwok", argv)
    made.cluster.kubectl.apply(*(_node(index) for index in range(count)))


def _node(index: int) -> Raw:
    """A fake node whose pods have addresses of a part of loopback that nobody else uses."""
    name = f"fake-{index:04d}"
    labels = {
        "type": "kwok",
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": f"zone-{'abc'[index % 3]}",
        "karpenter.sh/capacity-type": "on-demand",
    }
    network = f"127.{64 + index // 128}.{index % 128 * 2}.0/23"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": [kwok.TAINT], "podCIDR": network, "podCIDRs": [network]},
        "status": {"capacity": kwok.CAPACITY, "allocatable": kwok.CAPACITY},
    }


def _config(namespace: str, token: Path) -> Raw:
    pods = {
        "images": {"agent": "fake"},
        "agentTokenSecret": "agent-token",
        "nodeSelector": {"type": "kwok"},
        "tolerations": [{"key": key} for key in KEPT_ON],
    }
    return {"namespace": namespace, "listen": f":{OPERATOR_PORT}", "agentTokenFile": str(token), "pods": pods}


def _pids(pid: int) -> list[int]:
    """A process's ids, from this host's to the innermost namespace's."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(word) for line in lines if line.startswith("NSpid:") for word in line.split()[1:]]


def _files() -> str:
    """As many open files as this process may allow: one for each agent."""
    import resource  # noqa: PLC0415

    return str(min(int(FILES), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
