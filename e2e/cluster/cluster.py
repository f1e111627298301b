"""The cluster as a whole: up, down, status. One at a time on one state folder; everything else follows from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import binaries, cgroups, control_plane, images, node, packages
from .binaries import binary
from .control_plane import Credentials
from .errors import ClusterError
from .kubectl import Kubectl, Object, condition
from .layout import NODES, Layout, Network, NodeSpec, default_state, free_slot
from .machines import Machine
from .network import plug_host, plug_node, route
from .shell import locked, run, say, until

CONTROL_PLANE = control_plane.NAME


def _external() -> Path | None:
    named = os.environ.get("SHEAF_E2E_KUBECONFIG")
    return Path(named).absolute() if named else None


@dataclass
class Cluster:
    """One cluster by its state folder. ``owned``: it ends with the process that starts it.

    ``external`` is the kubeconfig of a cluster that somebody else runs; then only ``kubectl`` is of use.
    """

    state: Path = field(default_factory=default_state)
    owned: bool = False
    external: Path | None = field(default_factory=_external)

    def __post_init__(self) -> None:
        self.layout = Layout(self.state)
        self.layout.check()

    @property
    def network(self) -> Network:
        """Its addresses; raises ``ClusterError`` where it was never up."""
        try:
            return Network(self.layout.facts["slot"])
        except KeyError:
            raise ClusterError(f"no cluster was started in {self.state}; `python e2e/cluster up` starts one") from None

    @property
    def nodes(self) -> tuple[NodeSpec, ...]:
        """The nodes that it was started with."""
        specs = self.layout.facts.get("nodes", ())
        return tuple(NodeSpec(s["name"], s["index"], _pairs(s["labels"]), _pairs(s["resources"])) for s in specs)

    def spec(self, name: str) -> NodeSpec:
        """One node by name."""
        return next(spec for spec in self.nodes if spec.name == name)

    def machine(self, name: str) -> Machine:
        """One machine by name: a node, or the control plane."""
        return Machine(self.layout, name, self.owned)

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as the cluster's administrator."""
        if self.external is not None:
            return Kubectl(self.external, _installed("kubectl"))
        return Kubectl(self.layout.kubeconfig, binary("kubectl"))

    @property
    def running(self) -> bool:
        """Whether it was started to the end, and the control plane and every node run."""
        names = [CONTROL_PLANE, *(spec.name for spec in self.nodes)]
        return bool(self.layout.facts.get("whole")) and all(self.machine(name).running for name in names)

    def up(self, nodes: tuple[NodeSpec, ...] = NODES) -> Path:
        """Start the cluster, or leave it as it is where it runs; the kubeconfig's path.

        Raises:
            Unsupported: this machine cannot run it.
            ClusterError: something did not start; the message names its log.
        """
        if self.external is not None:
            self.kubectl("get", "--raw", "/readyz", timeout=20)
            return self.external
        packages.ensure()
        binaries.ensure()
        if nodes:
            images.ensure_base()
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.state / "lock", f"starting or stopping the cluster in {self.state}"):
            if self.running and self.nodes == nodes:
                say(f"the cluster in {self.state} runs already")
            else:
                self._start(nodes)
        return self.layout.kubeconfig

    def _start(self, nodes: tuple[NodeSpec, ...]) -> None:
        self._clean()
        facts = {"slot": free_slot(self.layout), "nodes": [asdict(spec) for spec in nodes], "whole": False}
        self._record(facts)
        credentials = control_plane.sign_all(self.layout, self.network, nodes)
        say(f"starting the control plane on {self.network.api_url}")
        self._start_control_plane(credentials)
        self._boot_nodes(nodes)
        control_plane.wait_ready(self.layout, self.network)
        control_plane.start_controllers(self.machine(CONTROL_PLANE), credentials)
        shutil.copy(credentials.kubeconfig(control_plane.ADMIN), self.layout.kubeconfig)
        for spec in nodes:
            node.start_kubernetes(self.machine(spec.name), spec, self.network, credentials)
        for spec in nodes:
            self.finish_node(spec)
        self._record({**facts, "whole": True})

    def _record(self, facts: Mapping[str, object]) -> None:
        self.layout.record.write_text(json.dumps(facts, indent=1))

    def _start_control_plane(self, credentials: Credentials) -> None:
        machine = self.machine(CONTROL_PLANE)
        machine.boot()
        plug_host(machine, self.layout, self.network)
        control_plane.start(machine, self.network, credentials)

    def _boot_nodes(self, nodes: Sequence[NodeSpec]) -> None:
        if not nodes:
            return
        say(f"starting {', '.join(spec.name for spec in nodes)}")
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(lambda spec: self._boot_node(spec, fresh=True), nodes))
        self._route()
        names = [spec.name for spec in nodes]
        images.load(self.layout, names, [images.BASE, node.PAUSE])

    def _boot_node(self, spec: NodeSpec, *, fresh: bool) -> None:
        machine = self.machine(spec.name)
        machine.boot()
        plug_node(self.machine(CONTROL_PLANE), machine, spec, self.network)
        node.start_containerd(machine, spec, self.network, fresh=fresh)

    @property
    def _credentials(self) -> Credentials:
        return Credentials(self.layout.pki)

    def start_api(self) -> None:
        """Start the API server where it was stopped."""
        control_plane.start_api_server(self.machine(CONTROL_PLANE), self.network, self._credentials)

    def stop_controllers(self) -> None:
        """End the controller manager and the scheduler."""
        for name in (control_plane.MANAGER, control_plane.SCHEDULER):
            self.machine(CONTROL_PLANE).stop(name, signal.SIGKILL)

    def start_controllers(self) -> None:
        """Start them where they do not run."""
        control_plane.start_controllers(self.machine(CONTROL_PLANE), self._credentials)

    def start_kubelet(self, spec: NodeSpec) -> None:
        """Start a node's kubelet where it was stopped."""
        node.start_kubelet(self.machine(spec.name), spec, self.network, self._credentials)

    def restart_node(self, spec: NodeSpec) -> None:
        """Boot a node that was lost, with what its disk holds; returns when it is Ready."""
        self._boot_node(spec, fresh=False)
        self._route()
        node.start_kubernetes(self.machine(spec.name), spec, self.network, self._credentials)
        self.finish_node(spec)

    def _route(self) -> None:
        alive = [(self.machine(spec.name), spec) for spec in self.nodes if self.machine(spec.name).running]
        route(self.machine(CONTROL_PLANE), alive, self.network)

    def finish_node(self, spec: NodeSpec, timeout: float = 60) -> None:
        """Returns when the node is Ready and shows its extended resources (which need no device plugin)."""
        found = self.kubectl.wait("node", spec.name, "registered", lambda found: found, timeout)
        if _ready(found, spec):
            return
        self._show_resources(spec)
        self.kubectl.wait("node", spec.name, "Ready", lambda found: _ready(found, spec), timeout)

    def _show_resources(self, spec: NodeSpec) -> None:
        if spec.resources:
            self.kubectl.patch("node", spec.name, {"status": {"capacity": dict(spec.resources)}}, subresource="status")

    def down(self) -> None:
        """End everything: processes, mounts, links, cgroups. Images stay imported for the next time."""
        if not self.state.is_dir():
            return
        with locked(self.state / "lock", f"starting or stopping the cluster in {self.state}"):
            self._clean()

    def _clean(self) -> None:
        """End what runs, also what a crashed run left, and forget this life's files."""
        folders = sorted((self.state / "machines").glob("*"), key=lambda folder: folder.name == CONTROL_PLANE)
        for folder in folders:
            self.machine(folder.name).kill()
            node.wipe(folder)
            shutil.rmtree(folder / "etcd", ignore_errors=True)
        if os.path.lexists(f"/sys/class/net/{self.layout.host_link}"):
            run(["ip", "link", "delete", self.layout.host_link], check=False)
        until("the end of the cluster's cgroups", self._cgroups_gone, timeout=20)
        for path in (self.layout.record, self.layout.kubeconfig):
            path.unlink(missing_ok=True)
        for folder in (self.layout.pki, self.layout.logs):
            shutil.rmtree(folder, ignore_errors=True)

    def _cgroups_gone(self) -> bool:
        try:
            cgroups.remove(self.layout.cgroup)
        except OSError:  # the kernel is still emptying one
            return False
        return True

    def status(self) -> list[str]:
        """One line a machine."""
        names = [CONTROL_PLANE, *(spec.name for spec in self.nodes)] if self.layout.facts else []
        return [f"{name}: {self._daemons(name)}" for name in names]

    def _daemons(self, name: str) -> str:
        try:
            daemons = self.machine(name).ask({})
        except OSError:
            return "does not run"
        return ", ".join(f"{daemon} {'runs' if pid else 'is stopped'}" for daemon, pid in daemons.items())


def _installed(name: str) -> Path:
    """A program of the user's own, or the built one."""
    found = shutil.which(name)
    return Path(found) if found else binary(name)


def _pairs(values: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in values)


def _ready(found: Object | None, spec: NodeSpec) -> bool:
    if found is None or condition(found, "Ready") != "True":
        return False
    allocatable = found["status"]["allocatable"]
    return all(allocatable.get(name) == amount for name, amount in spec.resources)
