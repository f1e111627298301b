"""An AutoscalingPolicy on this machine: real gateway, real pods over emulated engines; windows of seconds in place of
minutes."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from running_sheaf import Sheaf, manifest, own_processes, sheaf_up, write_manifests
from tiny_models import tiny_llama

pytestmark = pytest.mark.timeout(120)

# A step takes 50 ms, so that an answer of 40 tokens takes two seconds whatever else runs on this machine.
SLOW = {"name": "emulator", "args": ["--profile=custom", "--speed=0.2"]}
CLIENTS = 12
BIGGEST = 4
ANSWER = 40
ALWAYS = {"start": "00:00", "end": "24:00"}


def model(**spec: Any) -> str:
    return manifest("Model", "chat", source=f"file://{tiny_llama()}", **{**COMMON, **spec})


COMMON: dict[str, Any] = {
    "engine": SLOW,
    "replicas": 1,
    "drainTimeout": "3s",
    "lora": {"slots": 0},
    "autoscalingPolicyRef": {"name": "steady"},
    "sloRef": {"name": "chat"},
}


def policy(**spec: Any) -> str:
    quick = {"scaleUp": {"stabilization": "0s"}, "scaleDown": {"stabilization": "3s"}}
    fields = {"signal": "Concurrency", "target": 2, "minReplicas": 1, "maxReplicas": BIGGEST, **quick, **spec}
    return manifest("AutoscalingPolicy", "steady", **fields)


SLO = manifest("SLO", "chat", e2e={"p95": "20s"})


def declare(sheaf: Sheaf, *documents: str) -> None:
    write_manifests(sheaf.manifests / "all.yaml", *documents, SLO)


@pytest.fixture(scope="module")
def sheaf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheaf]:
    folder = tmp_path_factory.mktemp("autoscaling")
    (folder / "manifests").mkdir()
    write_manifests(folder / "manifests" / "all.yaml", model(), policy(), SLO)
    with sheaf_up(folder / "manifests", folder / "state", timeout=60) as running:
        yield running


def ask(sheaf: Sheaf, client: httpx.Client) -> httpx.Response:
    body = {"model": "chat", "prompt": "hello", "max_tokens": ANSWER, "ignore_eos": True}
    return client.post(f"{sheaf.url}/v1/completions", json=body, timeout=30)


@contextmanager
def load(sheaf: Sheaf, clients: int = CLIENTS) -> Iterator[list[str]]:
    """So many clients that ask one after the other; every answer that is none is kept."""
    failed: list[str] = []
    over = threading.Event()

    def client() -> None:
        with httpx.Client(verify=False) as http:
            while not over.is_set():
                answer = ask(sheaf, http)
                if answer.status_code != 200:
                    failed.append(answer.text)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in threads:
            thread.join()


def status(sheaf: Sheaf) -> dict[str, Any]:
    return dict(sheaf.get("models")[0].get("status", {}))


def record(sheaf: Sheaf) -> dict[str, Any]:
    return dict(status(sheaf).get("autoscaling") or {})


def wanted(sheaf: Sheaf) -> int:
    return int(record(sheaf).get("desiredReplicas", -1))


def serving(sheaf: Sheaf) -> int:
    return sum(pod["ready"] for pod in sheaf.get("pods"))


def reasons(sheaf: Sheaf) -> list[tuple[int, int, str]]:
    """The decisions of the status, the oldest first."""
    found = record(sheaf).get("decisions", [])
    return [(one["before"], one["after"], one["reason"]) for one in reversed(found)]


def at(sheaf: Sheaf, count: int) -> Callable[[], bool]:
    return lambda: wanted(sheaf) == count == serving(sheaf) == len(sheaf.get("pods"))


def events(sheaf: Sheaf) -> str:
    return (sheaf.state_dir.parent / f"{sheaf.state_dir.name}.stderr").read_text()


@contextmanager
def silent_gateway(sheaf: Sheaf) -> Iterator[None]:
    """The gateway stands still."""
    pid = next(iter(own_processes(sheaf, b"sheaf_gateway")))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pods_in_file(sheaf: Sheaf) -> list[str]:
    return [pod["name"] for pod in json.loads((sheaf.state_dir / "fleet.json").read_text())["pods"]]


def test_replicas_follow_the_load_up_to_the_bound_and_come_down_only_when_somebody_says_that_it_is_over(
    sheaf: Sheaf,
) -> None:
    declare(sheaf, model(), policy())
    sheaf.wait_for("one replica", at(sheaf, 1), 20)
    with load(sheaf) as failed:
        sheaf.wait_for("as many as may be", at(sheaf, BIGGEST), 20)
        assert wanted(sheaf) == BIGGEST
        with silent_gateway(sheaf):
            time.sleep(7)
            assert len(pods_in_file(sheaf)) == BIGGEST
            assert "ScaledDown: " not in events(sheaf)
    assert failed == []
    ended = time.monotonic()
    sheaf.wait_for("one replica again", at(sheaf, 1), 90)
    print(f"\n  down {time.monotonic() - ended:.1f} s after the last request")
    moves = reasons(sheaf)
    assert all(1 <= after <= BIGGEST for _, after, _ in moves)
    assert {reason for _, _, reason in moves} == {"Concurrency"}
    assert "ScaledUp: " in events(sheaf)
    assert "ScaledDown: " in events(sheaf)


def test_the_promise_is_told_as_it_was_kept(sheaf: Sheaf) -> None:
    windows = {one["window"]: one for one in sheaf.get("slos")[0]["status"]["windows"]}
    assert windows["5m"]["requests"] > 0
    assert windows["5m"]["attainedPercent"] > 90
    assert windows["5m"]["e2e"]["p50"].endswith("s")


def test_a_sleeping_model_answers_every_held_request_and_sleeps_again(sheaf: Sheaf) -> None:
    declare(sheaf, model(), policy(minReplicas=0, scaleToZero={"after": "1s"}))
    sheaf.wait_for("asleep", at(sheaf, 0), 30)
    answers: list[int] = []
    with httpx.Client(verify=False) as http:
        clients = [threading.Thread(target=lambda: answers.append(ask(sheaf, http).status_code)) for _ in range(8)]
        began = time.monotonic()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    print(f"\n  eight held requests answered {time.monotonic() - began:.1f} s after the first")
    assert answers == [200] * 8
    assert "Woken" in {reason for _, _, reason in reasons(sheaf)}
    sheaf.wait_for("asleep again", at(sheaf, 0), 30)
    assert reasons(sheaf)[-1][2] == "Idle"


def test_an_open_window_holds_its_replicas_without_a_write_and_a_closed_one_lets_them_go(sheaf: Sheaf) -> None:
    window = {"name": "always", **ALWAYS, "minReplicas": 2, "maxReplicas": 2}
    declare(sheaf, model(), policy(schedules=[window]))
    sheaf.wait_for("two replicas", at(sheaf, 2), 20)
    time.sleep(2)
    before = everything(sheaf)
    time.sleep(6)
    assert everything(sheaf) == before
    with load(sheaf, 8) as failed:
        time.sleep(3)
        assert wanted(sheaf) == 2
    assert failed == []
    declare(sheaf, model(), policy(schedules=[{**window, "days": [another_day()]}], maxReplicas=1))
    sheaf.wait_for("one replica", at(sheaf, 1), 30)


def everything(sheaf: Sheaf) -> list[list[dict[str, Any]]]:
    return [sheaf.get(kind) for kind in ("models", "slos", "autoscalingpolicies")]


def another_day() -> str:
    """One on which it is neither today nor yesterday anywhere."""
    return time.strftime("%a", time.gmtime(time.time() + 3 * 86400))
