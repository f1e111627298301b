"""The test cluster is a Kubernetes like any other: nodes, pods, probes, limits, Services, names, logs, permissions."""

import json
import time
import urllib.request

import pytest
from cluster.images import BASE
from cluster.kubectl import condition
from cluster.shell import until

pytestmark = pytest.mark.timeout(300, func_only=True)  # the cluster may be built first

SERVER = "import http.server, os, pathlib; pathlib.Path('/tmp/index.html').write_text(os.environ['HOSTNAME']); "
SERVER += "os.chdir('/tmp'); http.server.ThreadingHTTPServer(('', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()"


@pytest.fixture(autouse=True)
def _here(cluster):
    if cluster.external is not None:
        pytest.skip("these are the promises of the cluster that this machine runs: unset SHEAF_E2E_KUBECONFIG")


def container(code: str, **fields: object) -> dict:
    return {"name": "main", "image": BASE, "imagePullPolicy": "Never", "command": ["python3", "-c", code], **fields}


def pod(name: str, code: str, *, labels: dict | None = None, spec: dict | None = None, **fields: object) -> dict:
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container(code, **fields)], **(spec or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}}, "spec": spec}


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def eventually(probe, timeout: float = 20) -> object:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return probe()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_three_nodes_are_ready_with_their_zones_prices_and_gpus(cluster):
    nodes = {node["metadata"]["name"]: node for node in cluster.kubectl.list("nodes", "type!=kwok")}
    assert {condition(node, "Ready") for node in nodes.values()} == {"True"}
    shown = {
        name: (
            node["metadata"]["labels"]["topology.kubernetes.io/zone"],
            node["metadata"]["labels"]["karpenter.sh/capacity-type"],
            node["status"]["allocatable"]["nvidia.com/gpu"],
        )
        for name, node in nodes.items()
    }
    assert shown == {
        "node-a": ("zone-a", "on-demand", "4"),
        "node-b": ("zone-b", "spot", "4"),
        "node-c": ("zone-c", "spot", "4"),
    }


def test_a_service_answers_from_every_node_by_address_and_by_name(kubectl, cluster):
    probe = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    for name in ("node-a", "node-b", "node-c"):
        chosen = {"nodeSelector": {"kubernetes.io/hostname": name}, "hostname": name}
        kubectl.apply(pod(f"web-{name}", SERVER, labels={"app": "web"}, spec=chosen, readinessProbe=probe))
    service = {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}
    kubectl.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service})
    for name in ("node-a", "node-b", "node-c"):
        kubectl.wait_pod_ready(f"web-{name}")
    shown = kubectl.get("service", "web")["spec"]
    node_port = shown["ports"][0]["nodePort"]

    every = {"node-a", "node-b", "node-c"}
    for url in (f"http://{shown['clusterIP']}/", f"http://{cluster.network.node(2)}:{node_port}/"):
        asked = set()
        until(
            f"all of {url}",
            lambda url=url, asked=asked: asked.add(eventually(lambda: get(url))) or asked == every,
            timeout=30,
        )
    inside = (
        "import urllib.request as u; print({u.urlopen('http://web', timeout=5).read().decode() for _ in range(30)})"
    )
    assert set(eval(kubectl("exec", "web-node-c", "--", "python3", "-c", inside))) == every


def test_a_pod_over_its_memory_limit_is_oom_killed(kubectl):
    limit = {"limits": {"memory": "64Mi"}}
    kubectl.apply(pod("hungry", "x = bytearray(200 << 20)", spec={"restartPolicy": "Never"}, resources=limit))
    ended = kubectl.wait("pod", "hungry", "ended", lambda pod: pod["status"]["phase"] == "Failed")
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"


def test_a_failing_liveness_probe_restarts_the_container(kubectl):
    probe = {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1}
    code = "import pathlib, time; print('begun', flush=True); pathlib.Path('/tmp/alive').touch(); time.sleep(600)"
    startup = {**probe, "failureThreshold": 30}
    kubectl.apply(pod("sick", code, livenessProbe=probe, startupProbe=startup))
    kubectl.wait_pod_ready("sick")
    kubectl("exec", "sick", "--", "rm", "/tmp/alive")
    kubectl.wait("pod", "sick", "restarted", lambda p: p["status"]["containerStatuses"][0]["restartCount"] == 1)
    assert kubectl("logs", "sick", "--previous") == "begun\n"


def test_sidecars_start_first_and_end_last(kubectl):
    sidecar = {**container("import time; time.sleep(600)"), "name": "side", "restartPolicy": "Always"}
    kubectl.apply(pod("paired", "print('done')", spec={"initContainers": [sidecar], "restartPolicy": "Never"}))
    ended = kubectl.wait("pod", "paired", "ended", lambda pod: pod["status"]["phase"] == "Succeeded")
    side, main = ended["status"]["initContainerStatuses"][0], ended["status"]["containerStatuses"][0]
    assert main["state"]["terminated"]["reason"] == "Completed"
    assert side["state"]["terminated"]["startedAt"] <= main["state"]["terminated"]["startedAt"]


def test_a_restricted_pod_runs_and_its_root_is_read_only(kubectl):
    code = """
import os, pathlib
try:
    pathlib.Path('/x').touch()
except OSError as error:
    print(os.getuid(), error.strerror, pathlib.Path('/var/run/secrets').exists())
"""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    whole = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"securityContext": whole, "automountServiceAccountToken": False, "restartPolicy": "Never"}
    kubectl.apply(pod("restricted", code, spec=spec, securityContext=security))
    kubectl.wait("pod", "restricted", "ended", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert kubectl("logs", "restricted") == "65532 Read-only file system False\n"


def test_permissions_are_enforced_and_every_request_is_in_the_audit_log(kubectl, cluster):
    kubectl("create", "serviceaccount", "nobody")
    who = f"system:serviceaccount:{kubectl.namespace}:nobody"
    assert kubectl("auth", "can-i", "list", "pods", "--as", who, check=False).strip() == "no"
    with pytest.raises(Exception, match="cannot list resource"):
        kubectl("get", "pods", "--as", who)
    lines = cluster.layout.audit_log.read_text().splitlines()[-2000:]
    mine = [entry for entry in map(json.loads, lines) if entry.get("impersonatedUser", {}).get("username") == who]
    assert ("list", 403) in {(entry["verb"], entry["responseStatus"]["code"]) for entry in mine}


def test_nothing_leads_out_of_the_cluster(kubectl):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    kubectl.apply(pod("outward", code, spec={"restartPolicy": "Never"}))
    kubectl.wait("pod", "outward", "ended", lambda pod: pod["status"]["phase"] == "Failed")
    assert "unreachable" in kubectl("logs", "outward")
