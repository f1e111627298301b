"""The operator on a real cluster, with real pods: it serves, scales, hands over, rests, and cleans up after a Model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import images
from cluster.cluster import Cluster
from cluster.kubectl import Kubectl
from running_sheaf import free_port

TOKEN = "e2e-operator-agent-token"
MODEL = {
    "apiVersion": "sheaf.dev/v1alpha1",
    "kind": "Model",
    "metadata": {"name": "tiny"},
    "spec": {
        "source": "hf://org/tiny",
        "engine": {"name": "emulator", "args": ["--speedup=100"]},
        "replicas": 1,
        "drainTimeout": "5s",
        "lora": {"slots": 2},
    },
}
WRITES = ("create", "update", "patch", "delete")


@dataclass
class Operator:
    """A running operator process."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def figures(self) -> dict[str, float]:
        lines = httpx.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def writes(self) -> float:
        """Writes to the API server so far, the Lease's renewals aside."""
        return sum(
            number
            for name, number in self.figures().items()
            if name.startswith("sheaf_operator_api_calls_total")
            and 'resource="leases"' not in name
            and any(f'verb="{verb}"' in name for verb in WRITES)
        )

    def leads(self) -> bool:
        return self.figures().get("sheaf_operator_leader") == 1.0


@contextmanager
def operator(kubectl: Kubectl, folder: Path, image: str, name: str = "one") -> Iterator[Operator]:
    """The operator as a process of this machine, working in kubectl's namespace."""
    port = free_port()
    (folder / "token").write_text(TOKEN)
    pods = {"images": {"agent": image, "pullPolicy": "Never"}, "agentTokenSecret": "agent-token"}
    config = {"listen": f"127.0.0.1:{port}", "agentTokenFile": str(folder / "token"), "pods": pods}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "sheaf_operator", "--config", str(path), "--namespace", kubectl.namespace]
    command += ["--kubeconfig", str(kubectl.kubeconfig)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, text=True)
    try:
        found = Operator(process, f"http://127.0.0.1:{port}", log)
        until("the operator is ready", lambda: httpx.get(f"{found.url}/readyz").status_code == 200, 30, log)
        yield found
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(10) == 0
            assert time.monotonic() - began < 5.0
    finally:
        process.kill()
        process.wait()


def until(what: str, holds: Callable[[], Any], seconds: float, log: Path | None = None) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := holds():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise AssertionError(f"{what}: not within {seconds:.0f} s\n{log.read_text()[-3000:] if log else ''}")


def ready(kubectl: Kubectl, kind: str = "model", name: str = "tiny") -> dict[str, Any]:
    conditions = (kubectl.get(kind, name) or {}).get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "Ready"), {})


@pytest.fixture(scope="module")
def image(cluster: Cluster) -> str:
    """The agent's image, in every node."""
    name = os.environ.get("SHEAF_E2E_AGENT_IMAGE", "")
    if not name:
        name = images.build()["engine-agent"]
        images.load(cluster.layout, [spec.name for spec in cluster.nodes], [name])
    return name


@pytest.fixture
def space(kubectl: Kubectl) -> Kubectl:
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "agent-token"}, "stringData": {"token": TOKEN}}
    )
    return kubectl


def test_a_model_comes_to_serve_scales_rests_and_goes(space: Kubectl, image: str, tmp_path: Path) -> None:
    with operator(space, tmp_path, image) as one:
        space.apply(MODEL)
        until("Ready", lambda: ready(space).get("status") == "True", 90, one.log)
        space("scale", "model/tiny", "--replicas=2")
        until("two serve", lambda: space.get("model", "tiny")["status"]["readyReplicas"] == 2, 90, one.log)
        time.sleep(3.0)
        before = one.writes()
        time.sleep(20.0)
        assert one.writes() == before, "a quiet cluster is written to"
        events = space.list("events.events.k8s.io")
        assert any(event["reason"] == "Serving" and event["regarding"]["name"] == "tiny" for event in events)
        space("delete", "model/tiny", "--wait=false")
        until("pods go", lambda: not space.list("pods"), 60, one.log)


def test_a_killed_operator_is_replaced_in_fifteen_seconds_and_one_that_ends_at_once(
    space: Kubectl, image: str, tmp_path: Path
) -> None:
    with operator(space, tmp_path, image, "one") as one, operator(space, tmp_path, image, "two") as two:
        until("somebody leads", lambda: one.leads() or two.leads(), 20)
        first, second = (one, two) if one.leads() else (two, one)
        first.process.kill()
        killed = time.monotonic()
        until("the other leads", second.leads, 20)
        assert time.monotonic() - killed < 15.0
        with operator(space, tmp_path, image, "three") as three:
            assert not three.leads()
            second.process.send_signal(signal.SIGTERM)
            ended = time.monotonic()
            until("the third leads", three.leads, 10)
            assert time.monotonic() - ended < 5.0
