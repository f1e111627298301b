"""The chart on a real API server: what it renders is accepted, and what an upgrade and an uninstall leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.helm import CHART, Helm, helm_binary
from chart.values_matrix import MATRIX
from cluster.cluster import Cluster
from cluster.kubectl import Kubectl

FOREIGN = {"ServiceMonitor", "PodMonitor", "HTTPRoute"}
NO_PODS: dict[str, Any] = {
    "operator": {"replicas": 0},
    "gateway": {"replicas": 0},
    "image": {"pullPolicy": "Never"},
}
SECRETS = ("sheaf-agent-token", "sheaf-gateway-cache-salt", "sheaf-redis")
KINDS = ("models", "adapters", "slos", "autoscalingpolicies")


@pytest.fixture
def helm(cluster: Cluster, kubectl: Kubectl) -> Helm:
    """Helm in the cluster of the test's namespace."""
    return Helm(helm_binary(), kubectl.kubeconfig)


def install(helm: Helm, kubectl: Kubectl, chart: Path = CHART, **values: Any) -> str:
    options = ["--namespace", kubectl.namespace, "--take-ownership"]
    return helm("upgrade", "--install", "sheaf", str(chart), *options, values={**NO_PODS, **values})


def data(kubectl: Kubectl, secret: str) -> dict[str, str]:
    found = kubectl.get("secret", secret)
    assert found is not None
    return dict(found["data"])


@pytest.mark.parametrize("way", MATRIX)
def test_the_api_server_accepts_what_is_rendered(helm: Helm, kubectl: Kubectl, way: str) -> None:
    objects = helm.template(MATRIX[way], namespace=kubectl.namespace)
    known = [item for item in objects if item["kind"] not in FOREIGN]
    said = kubectl(
        "apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.dump_all(known)
    )
    assert len(said.splitlines()) == len(known)


def test_the_notes_say_what_to_type_next(helm: Helm, kubectl: Kubectl) -> None:
    said = install(helm, kubectl)
    assert f"kubectl apply --namespace {kubectl.namespace}" in said
    assert "service/sheaf-gateway 8000:80" in said
    assert "no API keys are configured" in said
    keys = {"keys": [{"name": "ci", "tenant": "gold", "sha256": "9f" * 32}]}
    assert "no API keys" not in install(helm, kubectl, gateway={"replicas": 0, "apiKeys": keys})


def test_an_upgrade_keeps_secrets_objects_and_crds(helm: Helm, kubectl: Kubectl, tmp_path: Path) -> None:
    install(helm, kubectl, older(tmp_path), redis={"enabled": True})
    secrets = {name: data(kubectl, name) for name in SECRETS}
    assert len(set(map(str, secrets.values()))) == len(SECRETS)
    kubectl.apply(model())
    before = {name: uid(kubectl, kind, name) for kind, name in kept()}
    install(helm, kubectl, commonLabels={"new": "label"}, redis={"enabled": True})
    deployment = kubectl.get("deployment", "sheaf-gateway")
    assert deployment is not None
    assert deployment["metadata"]["labels"]["new"] == "label"
    assert deployment["metadata"]["labels"]["app.kubernetes.io/version"] == "0.1.0"
    assert {name: data(kubectl, name) for name in SECRETS} == secrets
    assert {name: uid(kubectl, kind, name) for kind, name in kept()} == before


def test_an_uninstall_leaves_what_serves_and_nothing_else_of_its_own(helm: Helm, kubectl: Kubectl) -> None:
    install(helm, kubectl)
    kubectl.apply(model())
    token = data(kubectl, "sheaf-agent-token")
    helm("uninstall", "sheaf", "--namespace", kubectl.namespace, "--wait")
    assert kubectl.get("model", "kept") is not None
    assert all(kubectl.get("crd", f"{kind}.sheaf.dev") for kind in KINDS)
    ours = "app.kubernetes.io/part-of=sheaf"
    kinds = "deployments,services,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies"
    assert [item["metadata"]["name"] for item in kubectl.list(kinds, ours)] == ["sheaf-agent-token"]
    wide = kubectl.list("clusterroles,clusterrolebindings", ours)
    assert [item["metadata"]["name"] for item in wide if kubectl.namespace in item["metadata"]["name"]] == []
    helm(
        "install", "sheaf", str(CHART), "--namespace", kubectl.namespace, "--set", "crds.install=false", values=NO_PODS
    )
    assert data(kubectl, "sheaf-agent-token") == token


def test_people_with_the_clusters_own_roles_reach_the_kinds(helm: Helm, kubectl: Kubectl) -> None:
    install(helm, kubectl)
    kubectl("create", "rolebinding", "ann", "--clusterrole=view", "--user=ann")
    kubectl("create", "rolebinding", "bob", "--clusterrole=edit", "--user=bob")

    def may(user: str, verb: str, what: str, part: str = "") -> bool:
        return (
            kubectl("auth", "can-i", verb, what, f"--subresource={part}", f"--as={user}", check=False).strip() == "yes"
        )

    kubectl.wait("clusterrole", "edit", "the kinds", lambda role: "sheaf.dev" in json.dumps(role), 30)
    assert may("ann", "list", "models.sheaf.dev")
    assert not may("ann", "delete", "models.sheaf.dev")
    assert may("bob", "create", "adapters.sheaf.dev")
    assert may("bob", "patch", "models.sheaf.dev", "scale")
    assert not may("bob", "patch", "models.sheaf.dev", "status")


def model() -> dict[str, Any]:
    spec = {"source": "hf://a/b", "engine": {"name": "emulator"}, "replicas": 0}
    return {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": "kept"}, "spec": spec}


def kept() -> list[tuple[str, str]]:
    return [
        ("model", "kept"),
        *(("secret", name) for name in SECRETS),
        *(("crd", f"{kind}.sheaf.dev") for kind in KINDS),
    ]


def uid(kubectl: Kubectl, kind: str, name: str) -> str:
    found = kubectl.get(kind, name)
    assert found is not None, f"{kind} {name} is gone"
    return str(found["metadata"]["uid"])


def older(folder: Path) -> Path:
    """The chart as an earlier version of itself: there is no released one yet."""
    chart = Path(shutil.copytree(CHART, folder / "sheaf"))
    meta = chart / "Chart.yaml"
    meta.write_text(meta.read_text().replace("ersion: 0.1.0", "ersion: 0.0.9"))
    return chart
