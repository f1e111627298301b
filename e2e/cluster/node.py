"""One node: containerd, kubelet and kube-proxy on a machine of its own.

What the kubelet writes is new in every life of the cluster; containerd's image store is kept, so that images are imported
once.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .binaries import binary
from .control_plane import Credentials
from .layout import Layout, Network, NodeSpec
from .machines import Machine
from .network import write_cni
from .shell import run, until

PAUSE = "localhost/sheaf-pause:1"
CTR = ("ctr", "--namespace", "k8s.io", "--address")
SOCKET = "run/containerd/containerd.sock"
KUBELET = Path("/var/lib/kubelet")


def ctr(layout: Layout, node: str, *words: str | Path, timeout: float = 600, check: bool = True) -> str:
    """containerd's own client, asked from this host."""
    return run([*CTR, Machine(layout, node).root / SOCKET, *words], timeout=timeout, check=check)


def start_containerd(machine: Machine, spec: NodeSpec, network: Network, *, fresh: bool) -> None:
    """Start containerd; ``fresh`` forgets the containers of an earlier life (never the images)."""
    config = machine.folder / "containerd.toml"
    config.write_text(_containerd_config(machine.folder, write_cni(machine.folder, spec, network)))
    machine.start("containerd", ["containerd", "--config", config, "--log-level", "warn"])
    log = machine.layout.logs / f"{spec.name}.containerd.log"
    until(f"containerd on {spec.name} (see {log})", lambda: _answers(machine.layout, spec.name), timeout=60)
    if fresh:
        forget_containers(machine.layout, spec.name)


def _answers(layout: Layout, node: str) -> bool:
    return "io.containerd.grpc.v1" in ctr(layout, node, "plugins", "ls", check=False)


def forget_containers(layout: Layout, node: str) -> None:
    """Remove what containerd remembers of containers that ended with an earlier life."""
    if names := ctr(layout, node, "containers", "ls", "-q").split():
        ctr(layout, node, "containers", "rm", *names)


def start_kubernetes(machine: Machine, spec: NodeSpec, network: Network, credentials: Credentials) -> None:
    """Start the kubelet and kube-proxy; the node registers itself."""
    proxy_config = machine.folder / "kube-proxy.json"
    proxy_config.write_text(json.dumps(_proxy_config(spec, network, credentials), indent=1))
    start_kubelet(machine, spec, network, credentials)
    machine.start("kube-proxy", [binary("kube-proxy"), f"--config={proxy_config}", "--v=1"])


def start_kubelet(machine: Machine, spec: NodeSpec, network: Network, credentials: Credentials) -> None:
    """Start the kubelet, or start it again."""
    config, resolv = machine.folder / "kubelet.json", machine.folder / "resolv.conf"
    resolv.write_text(f"nameserver {network.control_plane}\n")
    config.write_text(json.dumps(_kubelet_config(machine.layout, spec, network, credentials, resolv), indent=1))
    machine.start("kubelet", _kubelet(spec, network, credentials, config))


def wipe(folder: Path) -> None:
    """Forget what the kubelet and CNI wrote in an earlier life."""
    for name in ("kubelet", "pod-logs", "cni-addresses"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _containerd_config(folder: Path, cni: Path) -> str:
    return f"""\
version = 2
root = "{folder}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  max_concurrent_downloads = 3
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def _kubelet(spec: NodeSpec, network: Network, credentials: Credentials, config: Path) -> list[str]:
    labels = ",".join(f"{key}={value}" for key, value in spec.labels)
    return [
        str(binary("kubelet")),
        f"--config={config}",
        f"--kubeconfig={credentials.kubeconfig(f'kubelet-{spec.name}')}",
        f"--hostname-override={spec.name}",
        f"--node-ip={network.node(spec.index)}",
        f"--root-dir={KUBELET}",
        f"--cert-dir={KUBELET / 'pki'}",
        "--housekeeping-interval=30s",
        *([f"--node-labels={labels}"] if labels else []),
        "--v=1",
    ]


def _kubelet_config(
    layout: Layout, spec: NodeSpec, network: Network, credentials: Credentials, resolv: Path
) -> dict[str, object]:
    folder = layout.machine(spec.name)
    pair = credentials.pair(f"kubelet-{spec.name}")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(credentials.authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pair.certificate),
        "tlsPrivateKeyFile": str(pair.key),
        "containerRuntimeEndpoint": f"unix:///{SOCKET}",
        "clusterDNS": [network.control_plane],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolv),
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(KUBELET / "volume-plugins"),
        **_fitting_any_host(),
        **_quick_and_quiet(),
    }


def _fitting_any_host() -> dict[str, object]:
    return {
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }


def _quick_and_quiet() -> dict[str, object]:
    return {
        "nodeStatusUpdateFrequency": "10s",
        "nodeLeaseDurationSeconds": 12,
        "serializeImagePulls": False,
        "healthzPort": 10248,
        "eventRecordQPS": 50,
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
    }


def _proxy_config(spec: NodeSpec, network: Network, credentials: Credentials) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": spec.name,
        "clusterCIDR": network.pods,
        "clientConnection": {"kubeconfig": str(credentials.kubeconfig("kube-proxy"))},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    }
