"""`sheaf up` end to end over emulated engines: edits, crashes and mistakes while it serves, and a clean end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running_sheaf import Sheaf, free_port, manifest, own_processes, sheaf_up, write_manifests
from tiny_models import tiny_adapter, tiny_llama

pytestmark = pytest.mark.timeout(300)

FAST = {"name": "emulator", "args": ["--speed=20"]}
LORA = {"slots": 4, "maxRank": 8}


def base(replicas: int = 2, **spec: object) -> str:
    fields = {"engine": {"name": "emulator"}, "replicas": replicas, "lora": LORA, "drainTimeout": "5s", **spec}
    return manifest("Model", "base", source=f"file://{tiny_llama()}", **fields)


def adapter(name: str, seed: int, **spec: object) -> str:
    fields = {"replicas": 2, **spec}
    return manifest("Adapter", name, modelRef={"name": "base"}, source=f"file://{tiny_adapter(seed)}", **fields)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheaf]:
    folder = tmp_path_factory.mktemp("local")
    (folder / "manifests").mkdir()
    declare(folder / "manifests")
    with sheaf_up(folder / "manifests", folder / "state", timeout=120) as running:
        yield running
    assert survivors(running) == []


@pytest.fixture
def sheaf(running: Sheaf) -> Sheaf:
    """The running cluster, as it was declared at first."""
    declare(running.manifests)
    running.wait_for("the first state", lambda: at_rest(running), 120)
    return running


def declare(manifests: Path) -> None:
    (manifests / "more.yaml").unlink(missing_ok=True)
    write_manifests(manifests / "models.yaml", base())
    write_manifests(manifests / "adapters.yaml", adapter("one", 1), adapter("two", 2))


def at_rest(sheaf: Sheaf) -> bool:
    pods = sheaf.get("pods")
    return len(pods) == 2 and all(pod["ready"] for pod in pods) and residency(sheaf) == {"one": 2, "two": 2}


def residency(sheaf: Sheaf) -> dict[str, int]:
    return {item["metadata"]["name"]: item["status"]["readyReplicas"] for item in sheaf.get("adapters")}


def ready_pods(sheaf: Sheaf) -> list[str]:
    return sorted(pod["name"] for pod in sheaf.get("pods") if pod["ready"])


def engine_pids(sheaf: Sheaf) -> dict[str, int]:
    """Engine processes of this run by pod."""
    found = own_processes(sheaf, b"sheaf_engine.emulator")
    return {pod: pid for pid, pod in found.items() if pod}


def survivors(sheaf: Sheaf) -> list[int]:
    """Processes of this run of `sheaf up` that are still there."""
    return list(own_processes(sheaf))


def chat(sheaf: Sheaf, model: str, timeout: float = 20.0) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return httpx.post(f"{sheaf.url}/v1/chat/completions", json=body, timeout=timeout)


def events(sheaf: Sheaf) -> str:
    return (sheaf.state_dir.parent / f"{sheaf.state_dir.name}.stderr").read_text()


def test_models_and_adapters_answer_under_their_names(sheaf: Sheaf) -> None:
    for name in ("base", "one", "two"):
        answer = chat(sheaf, name)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == name
    assert set(sheaf.lines) == {f"ready {sheaf.url}"}


def test_replicas_follow_the_file_up_and_down(sheaf: Sheaf) -> None:
    models = sheaf.manifests / "models.yaml"
    before = ready_pods(sheaf)
    write_manifests(models, base(replicas=3))
    sheaf.wait_for("three replicas", lambda: len(ready_pods(sheaf)) == 3, 60)
    assert set(before) < set(ready_pods(sheaf))
    write_manifests(models, base(replicas=1))
    sheaf.wait_for("one replica", lambda: len(sheaf.get("pods")) == 1, 60)
    assert chat(sheaf, "one").status_code == 200


def test_adapters_come_and_go_without_a_restart(sheaf: Sheaf) -> None:
    engines, before = engine_pids(sheaf), restarts(sheaf)
    adapters = sheaf.manifests / "adapters.yaml"
    write_manifests(adapters, adapter("two", 2), adapter("three", 3))
    sheaf.wait_for("two and three", lambda: residency(sheaf) == {"two": 2, "three": 2}, 60)
    assert chat(sheaf, "three").status_code == 200
    assert chat(sheaf, "one").status_code == 404
    assert engine_pids(sheaf) == engines
    assert restarts(sheaf) == before


def test_a_killed_engine_comes_back_with_its_adapters_and_no_request_fails(sheaf: Sheaf) -> None:
    failed: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answer = chat(sheaf, "one")
            if answer.status_code != 200:
                failed.append(answer.text)
            time.sleep(0.02)

    client = threading.Thread(target=ask)
    client.start()
    try:
        victim, pid = min(engine_pids(sheaf).items())
        before = restarts(sheaf)[victim]
        os.kill(pid, signal.SIGKILL)
        sheaf.wait_for("a restart", lambda: restarts(sheaf)[victim] == before + 1, 60)
        sheaf.wait_for("its adapters are back", lambda: residency(sheaf) == {"one": 2, "two": 2}, 60)
    finally:
        over.set()
        client.join()
    assert failed == []
    assert "was killed by SIGKILL" in events(sheaf)


def restarts(sheaf: Sheaf) -> dict[str, int]:
    return {pod["name"]: pod["restarts"] for pod in sheaf.get("pods")}


def test_a_broken_edit_is_one_line_and_everything_keeps_serving(sheaf: Sheaf) -> None:
    adapters = sheaf.manifests / "adapters.yaml"
    adapters.write_text(adapters.read_text().replace('"replicas": 2', '"replcas": 2', 1))
    sheaf.wait_for("the line", lambda: f"{adapters}:1: spec.replcas" in events(sheaf), 20)
    assert residency(sheaf) == {"one": 2, "two": 2}
    assert chat(sheaf, "one").status_code == 200
    adapters.write_text("{ not yaml\n")
    sheaf.wait_for("the line", lambda: f"{adapters}:2: (document)" in events(sheaf), 20)
    assert chat(sheaf, "two").status_code == 200


def test_a_new_template_rolls_out_without_a_failed_request(sheaf: Sheaf) -> None:
    before = ready_pods(sheaf)
    write_manifests(sheaf.manifests / "models.yaml", base(engine=FAST))
    while set(ready_pods(sheaf)) & set(before) or len(sheaf.get("pods")) != 2:
        answer = chat(sheaf, "two")
        assert answer.status_code == 200, answer.text
        assert len(ready_pods(sheaf)) >= 2
        time.sleep(0.05)


def test_bad_models_are_one_line_each_and_the_rest_serves(sheaf: Sheaf) -> None:
    missing = manifest("Model", "missing", source="file:///no/such/folder", engine={"name": "emulator"})
    crashing = manifest(
        "Model",
        "crashing",
        source=f"file://{tiny_llama()}",
        engine={"name": "emulator", "args": ["--profile=/no/such/profile"]},
    )
    write_manifests(sheaf.manifests / "more.yaml", missing, crashing)
    sheaf.wait_for("both reasons", lambda: reasons(sheaf) == {"base": "Serving", **BAD}, 60)
    assert chat(sheaf, "one").status_code == 200
    shown = sheaf_command("get", "models", "--url", sheaf.url)
    assert "FetchFailed" in shown.stdout
    assert "/no/such/folder" in shown.stdout


BAD = {"missing": "FetchFailed", "crashing": "CrashLoopBackOff"}


def reasons(sheaf: Sheaf) -> dict[str, str]:
    found = {}
    for item in sheaf.get("models"):
        conditions = {c["type"]: c for c in item["status"]["conditions"]}
        found[item["metadata"]["name"]] = conditions["Ready"]["reason"]
    return found


def test_a_decision_is_explained_term_by_term(sheaf: Sheaf) -> None:
    answer = chat(sheaf, "one")
    shown = sheaf_command("explain", answer.headers["x-request-id"], "--url", sheaf.url)
    assert shown.returncode == 0, shown.stderr
    assert all(pod in shown.stdout for pod in ready_pods(sheaf))
    assert "PREFILL" in shown.stdout
    assert "->" in shown.stdout


def test_get_shows_everything(sheaf: Sheaf) -> None:
    for kind in ("models", "adapters", "slos", "policies", "pods"):
        shown = sheaf_command("get", kind, "--url", sheaf.url)
        assert shown.returncode == 0, shown.stderr
    listed = json.loads(sheaf_command("get", "adapters", "-o", "json", "--url", sheaf.url).stdout)
    assert {item["metadata"]["name"] for item in listed["items"]} == {"one", "two"}


def test_a_port_in_use_is_one_line_and_exit_1(sheaf: Sheaf, tmp_path: Path) -> None:
    listen = sheaf.url.removeprefix("http://")
    ended = sheaf_command("up", str(sheaf.manifests), "--listen", listen, "--state-dir", str(tmp_path / "other"))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "is in use" in ended.stderr


def test_a_state_directory_in_use_is_one_line_and_exit_1(sheaf: Sheaf) -> None:
    ended = sheaf_command(
        "up", str(sheaf.manifests), "--listen", f"127.0.0.1:{free_port()}", "--state-dir", str(sheaf.state_dir)
    )
    assert ended.returncode == 1
    assert "another `sheaf up` uses" in ended.stderr


def test_nothing_survives_even_a_kill_9_of_sheaf_up(tmp_path: Path) -> None:
    write_manifests(tmp_path / "models.yaml", base(replicas=1))
    with pytest.raises(AssertionError, match="ended with -9"):
        kill_a_running_sheaf(tmp_path)


def kill_a_running_sheaf(folder: Path) -> None:
    with sheaf_up(folder / "models.yaml", folder / "state", timeout=90) as running:
        assert len(survivors(running)) >= 4
        running.process.kill()
        running.process.wait()
        deadline = time.monotonic() + 10
        while survivors(running) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert survivors(running) == []


def sheaf_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sheaf.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_that_cannot_run_does_not_withhold_the_ready_line(tmp_path: Path) -> None:
    broken = manifest("Model", "broken", source=f"file://{tmp_path}", engine={"args": ["--max-model-len=none"]})
    write_manifests(tmp_path / "models.yaml", base(replicas=1), broken)
    with sheaf_up(tmp_path / "models.yaml", tmp_path / "state", timeout=120) as running:
        ready = {item["metadata"]["name"]: item["status"]["readyReplicas"] for item in running.get("models")}
        assert ready == {"base": 1, "broken": 0}
