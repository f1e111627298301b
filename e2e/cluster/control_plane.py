"""etcd, the API server, the scheduler, the controller manager and DNS, on one machine of their own.

Only the API server listens on the machines' network; etcd's loopback is the machine's own. Node loss is noticed in
seconds: a kubelet renews its lease every 3 s, after ``NODE_GRACE`` seconds of silence its node is not ready, and after
``EVICTION`` more its pods are evicted.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .binaries import binary
from .certificates import Authority, Pair, kubeconfig, service_account_key
from .layout import API_PORT, Layout, Network, NodeSpec
from .machines import Machine
from .shell import until

NAME = "control-plane"
NODE_GRACE = 16
EVICTION = 10
ETCD = "http://127.0.0.1:2379"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
API_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
ADMIN, MANAGER, SCHEDULER = "admin", "kube-controller-manager", "kube-scheduler"
CLIENTS = {
    ADMIN: ("sheaf-test-admin", ("system:masters",)),
    MANAGER: ("system:kube-controller-manager", ()),
    SCHEDULER: ("system:kube-scheduler", ()),
    "kube-proxy": ("system:kube-proxy", ()),
    "coredns": ("sheaf-test-dns", ("system:masters",)),
    "kwok": ("sheaf-test-kwok", ("system:masters",)),
}


@dataclass(frozen=True)
class Credentials:
    """Where everything lies that was signed for this life of the cluster."""

    folder: Path

    @property
    def authority(self) -> Pair:
        return self.pair("ca")

    @property
    def service_accounts(self) -> Path:
        """The key that signs service-account tokens."""
        return self.folder / "service-accounts.key"

    def pair(self, name: str) -> Pair:
        """The pair of one server or client."""
        return Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")

    def kubeconfig(self, client: str) -> Path:
        """The kubeconfig of one client: a key of ``CLIENTS``, or ``kubelet-NODE``."""
        return self.folder / f"{client}.kubeconfig"


def sign_all(layout: Layout, network: Network, nodes: tuple[NodeSpec, ...]) -> Credentials:
    """New certificates for every part, and a kubeconfig for every client."""
    credentials = Credentials(layout.pki)
    authority = Authority(layout.pki)
    addresses = [network.control_plane, network.api_service, "127.0.0.1"]
    authority.sign("kube-apiserver", "kube-apiserver", hosts=[*API_NAMES, *addresses])
    authority.sign("to-kubelets", "kube-apiserver", ["system:masters"])
    authority.sign("to-extensions", "front-proxy-client")
    service_account_key(credentials.service_accounts)
    for name, (user, groups) in CLIENTS.items():
        authority.sign(name, user, groups)
    for node in nodes:
        hosts = [node.name, network.node(node.index)]
        authority.sign(f"kubelet-{node.name}", f"system:node:{node.name}", ["system:nodes"], hosts)
    for name in (*CLIENTS, *(f"kubelet-{node.name}" for node in nodes)):
        kubeconfig(credentials.kubeconfig(name), network.api_url, credentials.authority, credentials.pair(name))
    return credentials


def start(machine: Machine, network: Network, credentials: Credentials) -> None:
    """Start etcd and the API server, which waits for it by trying again."""
    machine.start("etcd", _etcd(machine.folder / "etcd"))
    start_api_server(machine, network, credentials)


def start_controllers(machine: Machine, credentials: Credentials) -> None:
    """Start everything that needs a ready API server."""
    machine.start(MANAGER, _controller_manager(credentials))
    machine.start(SCHEDULER, _scheduler(credentials))
    start_dns(machine, credentials)


def start_dns(machine: Machine, credentials: Credentials) -> None:
    """Start CoreDNS as a daemon beside the API server: pods ask the control plane's own address."""
    corefile = machine.folder / "Corefile"
    corefile.write_text(_corefile(credentials))
    machine.start("coredns", [binary("coredns"), "-conf", corefile])


def _corefile(credentials: Credentials) -> str:
    return f"""\
.:53 {{
  errors
  cache 5
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {credentials.kubeconfig("coredns")}
    pods insecure
  }}
}}
"""


def start_api_server(machine: Machine, network: Network, credentials: Credentials) -> None:
    """Start the API server, or start it again."""
    policy = machine.folder / "audit-policy.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    machine.start("kube-apiserver", _api_server(machine.layout, network, credentials, policy))


def wait_ready(layout: Layout, network: Network, timeout: float = 60) -> None:
    """Returns when the API server says that it is ready."""
    what = f"the API server's readiness (see {layout.logs / f'{NAME}.kube-apiserver.log'})"
    until(what, lambda: is_ready(layout, network), timeout=timeout)


def is_ready(layout: Layout, network: Network) -> bool:
    """Whether the API server answers ``/readyz`` with 200."""
    try:
        context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
        with urllib.request.urlopen(f"{network.api_url}/readyz", timeout=5, context=context) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _etcd(data: Path) -> list[str]:
    return [
        str(binary("etcd")),
        f"--data-dir={data}",
        "--name=test",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=test=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--auto-compaction-retention=1",
        "--quota-backend-bytes=8589934592",
        "--log-level=warn",
    ]


def _api_server(layout: Layout, network: Network, credentials: Credentials, policy: Path) -> list[str]:
    return [
        str(binary("kube-apiserver")),
        f"--etcd-servers={ETCD}",
        f"--bind-address={network.control_plane}",
        f"--advertise-address={network.control_plane}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={network.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--default-not-ready-toleration-seconds={EVICTION}",
        f"--default-unreachable-toleration-seconds={EVICTION}",
        "--enable-aggregator-routing=true",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-maxsize=200",
        "--audit-log-maxbackup=2",
        "--profiling=false",
        "--v=1",
        *_api_server_certificates(credentials),
    ]


def _api_server_certificates(credentials: Credentials) -> list[str]:
    authority = credentials.authority.certificate
    return [
        f"--client-ca-file={authority}",
        f"--tls-cert-file={credentials.pair('kube-apiserver').certificate}",
        f"--tls-private-key-file={credentials.pair('kube-apiserver').key}",
        f"--kubelet-certificate-authority={authority}",
        f"--kubelet-client-certificate={credentials.pair('to-kubelets').certificate}",
        f"--kubelet-client-key={credentials.pair('to-kubelets').key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={authority}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={credentials.pair('to-extensions').certificate}",
        f"--proxy-client-key-file={credentials.pair('to-extensions').key}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={credentials.service_accounts}",
        f"--service-account-signing-key-file={credentials.service_accounts}",
    ]


def _controller_manager(credentials: Credentials) -> list[str]:
    config = credentials.kubeconfig(MANAGER)
    return [
        str(binary(MANAGER)),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        f"--service-account-private-key-file={credentials.service_accounts}",
        f"--root-ca-file={credentials.authority.certificate}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--node-monitor-period=2s",
        f"--node-monitor-grace-period={NODE_GRACE}s",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--v=1",
    ]


def _scheduler(credentials: Credentials) -> list[str]:
    config = credentials.kubeconfig(SCHEDULER)
    return [
        str(binary(SCHEDULER)),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--v=1",
    ]
