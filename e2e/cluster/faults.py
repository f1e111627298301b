"""Faults, caused the way they happen: by signals, cut cables, power cuts, limits, taints; each can be taken back.

``Faults(cluster).heal()`` takes back everything at once; the test fixtures call it after every test that asks for faults.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, control_plane, spot
from .cluster import CONTROL_PLANE, Cluster
from .errors import ClusterError
from .kubectl import Kubectl, Object, condition
from .machines import descendants, started
from .network import set_port
from .shell import until

UNPULLABLE = "localhost:1/no-such-image:never"
NO_CAPACITY = "sheaf-test-no-capacity"


@dataclass(frozen=True)
class Faults:
    """The faults of one cluster that this machine runs."""

    cluster: Cluster

    @property
    def _kubectl(self) -> Kubectl:
        return self.cluster.kubectl

    def signal(self, namespace: str, pod: str, container: str, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to a container's main process, or to it and all its descendants (``group``).

        What is executed in the container from outside (probes, ``kubectl exec``) is left alone.
        """
        members = cgroups.processes(cgroups.of_container(self._running(namespace, pod, container)))
        main = [pid for pid in members if _inner_pid(pid) == 1]
        for pid in [*main, *(descendants(main[0]) if group and main else ())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def crash(self, namespace: str, pod: str, container: str) -> None:
        """Kill -9 of the main process; the kubelet starts the container again."""
        self.signal(namespace, pod, container, signal.SIGKILL)

    def hang(self, namespace: str, pod: str, container: str) -> None:
        """Stop all processes of a container without ending them: probes time out, connections stay open."""
        self.signal(namespace, pod, container, signal.SIGSTOP, group=True)

    def resume(self, namespace: str, pod: str, container: str) -> None:
        """Let a hung container go on."""
        self.signal(namespace, pod, container, signal.SIGCONT, group=True)

    def exhaust_memory(self, namespace: str, pod: str, container: str) -> None:
        """Take the container's memory away, so that the kernel's OOM killer ends it: ``OOMKilled``.

        With cgroup v1 the limit cannot fall below what is in use; a child that allocates then makes the kernel choose.
        """
        identity = self._running(namespace, pod, container)
        group, within = cgroups.of_container(identity), self._kubectl.within(namespace)
        (main, *_) = [pid for pid in cgroups.processes(group) if _inner_pid(pid) == 1]
        start = started(main)
        (Path("/proc") / str(main) / "oom_score_adj").write_text("1000")
        deadline = time.monotonic() + 20
        while started(main) == start:
            if time.monotonic() > deadline:
                raise ClusterError(f"{namespace}/{pod}/{container} survives without memory")
            cgroups.squeeze(group)
            within("exec", pod, "-c", container, "--", "true", check=False)

    def unpullable(self, namespace: str, pod: str, container: str) -> None:
        """Give a pod's container an image that no node can pull: ``ErrImagePull``, then ``ImagePullBackOff``.

        Where its pull policy is ``Never``, the kubelet says ``ErrImageNeverPull`` instead.
        """
        change = {"spec": {"containers": [{"name": container, "image": UNPULLABLE}]}}
        self._kubectl.within(namespace).strategic("pod", pod, change)

    def drain(self, node: str, timeout: float = 120) -> None:
        """Kubectl drain, as an administrator would."""
        options = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={timeout:g}s"]
        self._kubectl("drain", node, *options, timeout=timeout + 10)

    def uncordon(self, node: str) -> None:
        """Take a cordon back."""
        self._kubectl("uncordon", node)

    def notify(self, node: str, notice: str, seconds: float = 120) -> None:
        """A cloud's notice that the node will go: a key of ``spot.NOTICES``."""
        if notice == "gke-spot":  # a kubelet that shuts down no longer reports; the others keep the node's status fresh
            self.stop_kubelet(node)
        spot.give(self._kubectl, node, notice, seconds)

    def stop_kubelet(self, node: str) -> None:
        """Stop a node's kubelet; its containers run on."""
        self.cluster.machine(node).stop("kubelet")

    def lose(self, node: str) -> None:
        """Cut a node's power: kubelet, containerd and every container end in the same instant."""
        self.cluster.machine(node).kill()

    def restart(self, node: str) -> None:
        """Switch a lost node on again; returns when it is Ready."""
        self.cluster.restart_node(self.cluster.spec(node))

    def partition(self, node: str) -> None:
        """Pull a node's cable: it runs on, and nobody reaches it."""
        set_port(self.cluster.machine(CONTROL_PLANE), node, up=False)

    def rejoin(self, node: str) -> None:
        """Plug the cable in again."""
        set_port(self.cluster.machine(CONTROL_PLANE), node, up=True)

    def stop_api(self) -> None:
        """Stop the API server (killed after 5 s of politeness): connections are refused until ``start_api``."""
        self.cluster.machine(CONTROL_PLANE).stop("kube-apiserver", timeout=10)
        self.cluster.stop_controllers()

    def kill_api(self) -> None:
        """Kill -9 of the API server; it stays away until ``start_api``.

        Controller manager and scheduler end too, as they do wherever they hold Leases: within 10 s of not being able to
        renew them. Ones that lived on would take the nodes for lost in the moment in which the API server is back.
        """
        self.cluster.machine(CONTROL_PLANE).stop("kube-apiserver", signal.SIGKILL)
        self.cluster.stop_controllers()

    def start_api(self) -> None:
        """Start the API server and its controllers again where they were away; returns when it is ready."""
        self.cluster.start_api()
        control_plane.wait_ready(self.cluster.layout, self.cluster.network)
        self.cluster.start_controllers()

    def no_capacity(self, namespace: str, nodes: Sequence[str] = ()) -> None:
        """No node takes a new pod (a taint), and the namespace's quota holds no more than it has."""
        for name in nodes or [spec.name for spec in self.cluster.nodes]:
            self._kubectl("taint", "node", name, "--overwrite", f"{NO_CAPACITY}=true:NoSchedule")
        pods = [pod for pod in self._kubectl.within(namespace).list("pods") if _stays(pod)]
        self._kubectl.within(namespace).apply(_quota(len(pods)))

    def capacity(self, namespace: str) -> None:
        """Take ``no_capacity`` back."""
        for node in self._kubectl.list("nodes"):
            if _tainted(node, NO_CAPACITY):
                self._kubectl("taint", "node", node["metadata"]["name"], f"{NO_CAPACITY}-")
        self._kubectl.within(namespace).delete("resourcequota", NO_CAPACITY)

    def heal(self) -> None:
        """Take back everything that was done to nodes and to the API server; returns when all is Ready."""
        self.start_api()
        for spec in self.cluster.nodes:
            if not self.cluster.machine(spec.name).running:
                self.restart(spec.name)
            self.rejoin(spec.name)
            self.cluster.start_kubelet(spec)
        for node in self._kubectl.list("nodes", "type!=kwok"):
            spot.clear(self._kubectl, node)
            if _tainted(node, NO_CAPACITY):
                self._kubectl("taint", "node", node["metadata"]["name"], f"{NO_CAPACITY}-")
        for spec in self.cluster.nodes:
            self.cluster.finish_node(spec)

    def _running(self, namespace: str, pod: str, container: str) -> str:
        """containerd's name of a running container; waits for it to run."""

        def look() -> str:
            status = _status(self._kubectl.within(namespace).get("pod", pod), container)
            return (
                str(status.get("containerID", "").rpartition("//")[2]) if "running" in status.get("state", {}) else ""
            )

        return until(f"{namespace}/{pod}: container {container} running", look, timeout=30)


_ALIVE = ("Pending", "Running")


def _stays(pod: Object) -> bool:
    return pod["status"]["phase"] in _ALIVE and "deletionTimestamp" not in pod["metadata"]


def _status(pod: Object | None, container: str) -> Object:
    status = pod["status"] if pod else {}
    every = [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]
    return next((entry for entry in every if entry["name"] == container), {})


def _inner_pid(pid: int) -> int:
    """A process id as its own innermost namespace counts; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[-1]) for line in status.splitlines() if line.startswith("NSpid:"))


def _tainted(node: Object, key: str) -> bool:
    return any(taint["key"] == key for taint in node["spec"].get("taints", ()))


def _quota(pods: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": NO_CAPACITY},
        "spec": {"hard": {"pods": str(pods)}},
    }


def ready(node: Object | None) -> bool:
    """Whether a node is Ready."""
    return node is not None and condition(node, "Ready") == "True"
