"""The main job on Kubernetes, as a user does it: helm, kubectl, and answers of real vLLM through the gateway's Service."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chart import audit
from chart.helm import CHART, ROOT
from chart.installation import BUCKET, Installation, installation, ready_images, store, values
from cluster.cluster import Cluster
from running_sheaf import bare_vllm
from tiny_models import tiny_adapter, tiny_llama

PROMPTS = ("The capital of France is", "A sheaf binds many stalks", "Please write a short poem")
ARGS = ("--enforce-eager", "--max-model-len=512", "--block-size=32")
ADAPTERS = {"north": 1, "south": 2}
DRY = "llama-70b-dry"


def manifest(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "sheaf.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def declared() -> list[dict[str, Any]]:
    model = manifest(
        "Model",
        "tiny",
        source=f"s3://{BUCKET}/tiny",
        engine={"name": "vllm", "args": list(ARGS[:2])},
        lora={"slots": 2, "maxRank": 8},
        sloRef={"name": "chat"},
        autoscalingPolicyRef={"name": "one"},
    )
    adapters = [
        manifest("Adapter", name, modelRef={"name": "tiny"}, source=f"s3://{BUCKET}/{name}") for name in ADAPTERS
    ]
    slo = manifest("SLO", "chat", **{"class": "Interactive", "ttft": {"p95": "5s"}})
    policy = manifest("AutoscalingPolicy", "one", signal="Concurrency", target=32, minReplicas=1, maxReplicas=1)
    return [slo, policy, model, *adapters]


@pytest.fixture(scope="module")
def audit_begin(cluster: Cluster) -> int:
    """Where the audit log ended before the installation."""
    return cluster.layout.audit_log.stat().st_size


@pytest.fixture(scope="module")
def sheaf(cluster: Cluster, audit_begin: int) -> Iterator[Installation]:
    """The chart installed, the tiny models and the emulator example applied and ready."""
    if cluster.external is not None:
        pytest.skip("engines of the test run this machine's environment: unset SHEAF_E2E_KUBECONFIG")
    folders = {"tiny": tiny_llama(), **{name: tiny_adapter(seed) for name, seed in ADAPTERS.items()}}
    tag = ready_images(cluster)
    with (
        store(cluster, folders) as url,
        installation(cluster, f"main-job-{secrets.token_hex(3)}") as installed,
    ):
        installed.install(values(tag, url))
        installed.kubectl("apply", "-f", str(ROOT / "examples/dry-run-emulator.yaml"))
        installed.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(thing) for thing in declared()))
        for kind, name in (("model", DRY), ("model", "tiny"), *(("adapter", name) for name in ADAPTERS)):
            installed.kubectl.wait(kind, name, "Ready", ready, timeout=300)
        yield installed


def ready(thing: dict[str, Any] | None) -> bool:
    conditions = (thing or {}).get("status", {}).get("conditions", ())
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def complete(url: str, model: str, prompt: str) -> str:
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def test_every_example_is_accepted(sheaf: Installation) -> None:
    said = sheaf.kubectl("apply", "--dry-run=server", "-f", str(ROOT / "examples"))
    assert DRY in said


def test_kubectl_get_reads_well(sheaf: Installation) -> None:
    lines = sheaf.kubectl("get", "models,adapters,slos").splitlines()
    rows = {line.split()[0]: line.split()[1:-1] for line in lines if line and not line.startswith("NAME")}
    columns = next(line.split() for line in lines if line.startswith("NAME"))
    assert columns == ["NAME", "READY", "REASON", "REPLICAS", "DESIRED", "SERVING", "ADAPTERS", "AGE"]
    assert rows["model.sheaf.dev/tiny"] == ["True", "Serving", "1", "1", "1", "2"]
    assert rows["adapter.sheaf.dev/north"][:1] == ["True"]
    assert rows["slo.sheaf.dev/chat"]


def test_kubectl_explain_documents_every_field(sheaf: Installation) -> None:
    for kind in ("models", "adapters", "slos", "autoscalingpolicies"):
        crd = sheaf.kubectl.get("crd", f"{kind}.sheaf.dev")
        assert crd is not None
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        undocumented = [path for path, node in _fields(schema["properties"]["spec"], "spec") if not _told(node)]
        assert undocumented == [], kind
    text = sheaf.kubectl("explain", "model.spec")
    assert "<no description>" not in text
    assert "Where the weights are" in text


def test_answers_through_the_service_are_those_of_stock_vllm(sheaf: Installation, tmp_path: Path) -> None:
    names = ["tiny", *ADAPTERS]
    ours = {(name, prompt): complete(sheaf.url, name, prompt) for name in names for prompt in PROMPTS}
    folders = {name: tiny_adapter(seed) for name, seed in ADAPTERS.items()}
    options = [*ARGS, "--enable-lora", "--max-loras=2", "--max-lora-rank=8"]
    with bare_vllm(tiny_llama(), "tiny", folders, options, tmp_path / "vllm.log") as url:
        theirs = {(name, prompt): complete(url, name, prompt) for name in names for prompt in PROMPTS}
    assert ours == theirs
    assert len({tuple(ours[name, prompt] for prompt in PROMPTS) for name in names}) == len(names)


def test_kubectl_scale_moves_the_replicas(sheaf: Installation) -> None:
    sheaf.kubectl("scale", f"model/{DRY}", "--replicas=1")
    replicas(sheaf, 1)
    scale = json.loads(sheaf.kubectl("get", "model", "llama-70b-dry", "--subresource=scale", "-o", "json"))
    pods = sheaf.kubectl.list("pods", scale["status"]["selector"])
    assert len([pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]) == 1


def test_a_horizontal_pod_autoscaler_moves_the_replicas(sheaf: Installation) -> None:
    target = {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "name": DRY}
    metric = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}},
    }
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "dry"},
        "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4, "metrics": [metric]},
    }
    sheaf.kubectl.apply(scaler)
    replicas(sheaf, 2)
    sheaf.kubectl.delete("horizontalpodautoscaler", "dry")


def test_a_strangers_pod_of_the_wanted_name_is_let_be(sheaf: Installation) -> None:
    sheaf.kubectl("scale", f"model/{DRY}", "--replicas=1")
    replicas(sheaf, 1)
    (pod,) = sheaf.kubectl.list("pods", f"sheaf.dev/model={DRY}")
    stem, _, index = pod["metadata"]["name"].rpartition("-")
    name = f"{stem}-{0 if int(index) else 1}"
    sheaf.kubectl.apply(stranger(name))
    sheaf.kubectl("scale", f"model/{DRY}", "--replicas=2")
    said = f"a pod named {name} is there and not of this Model"
    assert within(60, lambda: said in sheaf.kubectl("logs", "-l", "app.kubernetes.io/name=sheaf-operator", "--tail=-1"))
    found = sheaf.kubectl.get("pod", name)
    assert found is not None
    assert "deletionTimestamp" not in found["metadata"]
    sheaf.kubectl.delete("pod", name)
    replicas(sheaf, 2)


def replicas(sheaf: Installation, count: int) -> None:
    """Returns when the dry run has that many replicas, all ready and no more."""

    def settled(model: dict[str, Any] | None) -> bool:
        status = (model or {}).get("status", {})
        return bool(status.get("replicas") == status.get("readyReplicas") == count)

    sheaf.kubectl.wait("model", DRY, f"{count} ready", settled, 120)
    sheaf.kubectl.wait_list("pods", f"{count}", lambda pods: len(pods) == count, f"sheaf.dev/model={DRY}", 60)


def stranger(name: str) -> dict[str, Any]:
    """Somebody's pod, which is never scheduled."""
    context = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "theirs", "image": "localhost/sheaf-pause:1", "securityContext": context}
    spec = {"schedulingGates": [{"name": "example.com/never"}], "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def test_helm_test_gets_a_real_answer(sheaf: Installation) -> None:
    said = sheaf.helm("test", "sheaf", "--namespace", sheaf.namespace, "--logs", "--timeout", "180s", timeout=200)
    assert "answered:" in said


def test_an_upgrade_under_requests_fails_none(sheaf: Installation) -> None:
    held = json.loads(sheaf.helm("get", "values", "sheaf", "-n", sheaf.namespace, "-o", "json"))
    held["gateway"]["podAnnotations"] = {"changed": "yes"}
    options = ["-n", sheaf.namespace, "--take-ownership"]
    sheaf.helm("upgrade", "sheaf", str(CHART), *options, values=held)
    url, body = f"{sheaf.url}/v1/completions", {"model": DRY, "prompt": "hello", "max_tokens": 2}
    codes: Counter[int] = Counter()
    with (
        httpx.Client(timeout=60) as client,
        sheaf.kubectl.popen("rollout", "status", "deployment/sheaf-gateway", "--timeout=180s") as rollout,
    ):
        while rollout.poll() is None:
            codes[client.post(url, json=body).status_code] += 1
        assert rollout.returncode == 0, rollout.communicate()
    assert set(codes) == {200}
    assert codes[200] >= 50


def test_pods_go_with_their_model_even_when_kubernetes_is_told_to_leave_them(sheaf: Installation) -> None:
    sheaf.kubectl("delete", "model", DRY, "--cascade=orphan")
    sheaf.kubectl.wait_list("pods", "none", lambda pods: not pods, f"sheaf.dev/model={DRY}", 60)


def test_what_is_granted_is_what_was_used(sheaf: Installation, audit_begin: int) -> None:
    for part in ("operator", "gateway"):
        roles = [sheaf.kubectl.get("role", f"sheaf-{part}")]
        roles += [sheaf.kubectl.get("clusterrole", f"sheaf-{sheaf.namespace}-nodes")] if part == "operator" else []
        account = f"{sheaf.namespace}:sheaf-{part}"

        def seen(account: str = account) -> list[dict[str, Any]]:
            return list(audit.requests(sheaf.cluster.layout.audit_log, account, audit_begin))

        granted = audit.granted([role for role in roles if role])
        assert within(30, lambda granted=granted, seen=seen: granted <= audit.used(seen())), (
            f"{part}: granted and never used: {sorted(granted - audit.used(seen()))}"
        )
        assert audit.refused(seen()) == []
        assert audit.used(seen()) - granted == set()


def test_engines_outlive_an_uninstallation_and_the_next_installation_finds_them(sheaf: Installation) -> None:
    held = json.loads(sheaf.helm("get", "values", "sheaf", "-n", sheaf.namespace, "-o", "json"))
    before = lives(sheaf)
    sheaf.helm("uninstall", "sheaf", "-n", sheaf.namespace, "--wait", "--timeout", "120s", timeout=130)
    assert lives(sheaf) == before
    sheaf.install(held)
    assert complete(sheaf.url, "north", PROMPTS[0])
    sheaf.kubectl.wait("model", "tiny", "Ready", ready, timeout=60)
    assert lives(sheaf) == before


def lives(sheaf: Installation) -> list[tuple[str, int]]:
    """UID and restarts of each pod of the tiny Model."""
    pods = sheaf.kubectl.list("pods", "sheaf.dev/model=tiny")
    return [(p["metadata"]["uid"], s["restartCount"]) for p in pods for s in p["status"]["containerStatuses"]]


def _fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, below in node.get("properties", {}).items():
        yield from _fields(below, f"{path}.{name}")
    if isinstance(node.get("items"), dict) and "properties" in node["items"]:
        for name, below in node["items"]["properties"].items():
            yield from _fields(below, f"{path}[].{name}")


def _told(node: dict[str, Any]) -> bool:
    return bool(node.get("description", "").strip())
