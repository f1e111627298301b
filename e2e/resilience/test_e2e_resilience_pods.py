"""What happens to engine pods: the Model says what is wrong and how to mend it, others serve on, nothing is deleted by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster.faults import UNPULLABLE, Faults

from resilience.fleet import Fleet, emulated, restarts, uids
from resilience.load import Load

pytestmark = pytest.mark.timeout(300, func_only=True)


@pytest.fixture(scope="module")
def hung(sheaf: Fleet) -> tuple[str, float]:
    """A Model of which one of two engines stands still, and since when: its probes need a minute to give up."""
    sheaf.serve("hung", emulated(replicas=2))
    pod = min(pod["metadata"]["name"] for pod in sheaf.pods("hung"))
    Faults(sheaf.cluster).hang(sheaf.namespace, pod, "engine")
    return pod, time.monotonic()


@pytest.fixture
def others(sheaf: Fleet, hung: tuple[str, float]) -> Iterator[Load]:
    """Requests to another Model, none of which may fail."""
    with Load(sheaf.url, ["good"]) as load:
        yield load
        load.more()
    assert load.failed == 0, load


@pytest.fixture
def patient(sheaf: Fleet, others: Load) -> Iterator[str]:
    """A Model with one replica, to which bad things happen."""
    sheaf.serve("patient", emulated())
    yield "patient"
    sheaf.forget("patient")


def test_an_image_that_cannot_be_pulled_stops_the_rollout_and_not_the_replicas(sheaf: Fleet, patient: str) -> None:
    before = uids(sheaf.pods(patient))
    sheaf.kubectl.patch("model", patient, {"spec": {"engine": {"image": UNPULLABLE}}})
    with Load(sheaf.url, [patient]) as load:
        said = sheaf.says("model", patient, "Progressing", "True", "RollingUpdate")
        said = until_said(sheaf, patient, "Progressing", UNPULLABLE)
        assert "correct the image (spec.engine.image" in said
        sheaf.kubectl.patch("model", patient, {"spec": {"engine": {"image": None}}})
        sheaf.settled(patient)
    assert load.failed == 0, load
    assert uids(sheaf.pods(patient)) == before


def test_an_engine_that_cannot_start_says_why_and_an_edit_mends_it(sheaf: Fleet, others: Load) -> None:
    sheaf.kubectl.apply(manifest_of("crashing", "--profile=nonsense"))
    said = sheaf.says("model", "crashing", "Ready", "False", "CrashLoopBackOff", "EngineEnded")
    assert "nonsense" in said
    sheaf.kubectl.patch("model", "crashing", {"spec": {"engine": {"args": ["--profile=instant"]}}})
    sheaf.settled("crashing")
    assert sheaf.ask("crashing")
    sheaf.forget("crashing")


def test_an_engine_that_runs_out_of_memory_is_said_to_and_comes_back(
    sheaf: Fleet, faults: Faults, patient: str
) -> None:
    (pod,) = sheaf.pods(patient)
    faults.exhaust_memory(sheaf.namespace, pod["metadata"]["name"], "engine")
    said = sheaf.says("model", patient, "Ready", "False", "OOMKilled")
    assert "raise the engine's memory limit" in said
    sheaf.settled(patient)
    (same,) = sheaf.pods(patient)
    assert uids([same]) == uids([pod])


def test_without_capacity_a_model_waits_and_serves_with_what_it_has(sheaf: Fleet, faults: Faults, patient: str) -> None:
    faults.no_capacity(sheaf.namespace)
    sheaf.kubectl.delete("resourcequota", "sheaf-test-no-capacity")
    with Load(sheaf.url, [patient]) as load:
        sheaf.scale(patient, 2)
        said = sheaf.says("model", patient, "Ready", "False", "Unschedulable")
        assert "add nodes" in said
        sheaf.says("model", patient, "Available", "True")
        faults.capacity(sheaf.namespace)
        sheaf.settled(patient)
    assert load.failed == 0, load


def test_a_quota_that_holds_no_more_pods_is_named(sheaf: Fleet, faults: Faults, patient: str) -> None:
    faults.no_capacity(sheaf.namespace)
    for node in sheaf.cluster.kubectl.list("nodes"):
        sheaf.cluster.kubectl("taint", "node", node["metadata"]["name"], "sheaf-test-no-capacity-")
    sheaf.scale(patient, 2)
    said = until_said(sheaf, patient, "Ready", "quota")
    assert said
    faults.capacity(sheaf.namespace)
    sheaf.settled(patient)


def test_an_engine_that_stands_still_is_passed_over_and_restarted(
    sheaf: Fleet, hung: tuple[str, float], others: Load
) -> None:
    name, since = hung
    with Load(sheaf.url, ["hung"]) as load:
        sheaf.kubectl.wait("pod", name, "restarted", lambda pod: pod and restarts(pod) > 0, 150)
    print(f"\n  restarted {time.monotonic() - since:.0f} s after it stood still")
    assert load.failed == 0, load
    sheaf.settled("hung")
    sheaf.forget("hung")


def manifest_of(name: str, *args: str) -> dict[str, object]:
    """A Model whose engine gets these arguments."""
    return {
        "apiVersion": "sheaf.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": emulated(*args),
    }


def until_said(sheaf: Fleet, model: str, condition: str, word: str, timeout: float = 60) -> str:
    """The message of a condition as soon as it holds the word."""
    deadline = time.monotonic() + timeout
    while word not in (said := message(sheaf, model, condition)):
        assert time.monotonic() < deadline, f"{condition} of {model} does not say {word!r}: {said}"
        time.sleep(0.5)
    return said


def message(sheaf: Fleet, model: str, condition: str) -> str:
    """What a condition says now."""
    found = (sheaf.kubectl.get("model", model) or {}).get("status", {}).get("conditions", ())
    return next((f"{one['reason']}: {one['message']}" for one in found if one["type"] == condition), "")
