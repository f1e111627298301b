"""`ready` comes when there is nothing more to wait for, and it always comes."""

from typing import Any

import pytest
from sheaf.local.readiness import HOPE_S, Readiness
from sheaf_crds import Model
from sheaf_operator.planning import PodFacts


def model(
    name: str, *, replicas: int = 1, reason: str = "", progressing: tuple[str, str] = ("True", "Starting")
) -> Model:
    said: list[dict[str, Any]] = [
        {"type": "Ready", "status": "False", "reason": reason or "Starting", "message": "", "observedGeneration": 1},
        {"type": "Progressing", "status": progressing[0], "reason": progressing[1], "message": ""},
    ]
    spec = {"source": "hf://org/name", "replicas": replicas}
    return Model.model_validate({"metadata": {"name": name}, "spec": spec, "status": {"conditions": said}})


def pod(of: str, *, ready: bool = False, reason: str = "") -> PodFacts:
    return PodFacts(f"{of}-0", "uid", of, "uid", "hash", ready=ready, reason=reason)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("models", "pods", "reached"),
    [
        ([], [], True),
        ([model("a", replicas=0)], [], True),
        ([model("a")], [], False),
        ([model("a")], [pod("a")], False),
        ([model("a")], [pod("a", ready=True)], True),
        ([model("a"), model("b")], [pod("a", ready=True), pod("b")], False),
        ([model("a"), model("b")], [pod("a", ready=True), pod("b", reason="FetchFailed")], True),
        (
            [model("a"), model("b", reason="NameClash", progressing=("False", "NameClash"))],
            [pod("a", ready=True)],
            True,
        ),
        ([model("a"), model("b", reason="SLONotFound")], [pod("a", ready=True)], False),
    ],
)
def test_every_model_must_serve_or_say_why_it_cannot(models: list[Model], pods: list[PodFacts], reached: bool) -> None:
    assert Readiness(Clock()).reached(models, pods) is reached


def test_where_none_serves_there_is_hope_for_a_while_and_then_an_answer() -> None:
    clock = Clock()
    readiness = Readiness(clock)
    failing = [model("a")], [pod("a", reason="FetchFailed")]
    assert not readiness.reached(*failing)
    clock.now += HOPE_S / 2
    assert not readiness.reached([model("a")], [pod("a")])
    assert not readiness.reached(*failing)
    clock.now += HOPE_S / 2
    assert readiness.reached(*failing)
    assert readiness.reached([model("a")], [pod("a", ready=True)])


@pytest.mark.parametrize("between", [pod("a"), pod("a", ready=True)])
def test_what_did_not_fail_for_a_while_is_given_hope_again(between: PodFacts) -> None:
    clock = Clock()
    readiness = Readiness(clock)
    failing = [model("a")], [pod("a", reason="InsufficientMemory")]
    assert not readiness.reached(*failing)
    clock.now += 5
    readiness.reached([model("a")], [between])
    clock.now += HOPE_S
    assert not readiness.reached(*failing)
    clock.now += HOPE_S / 2
    assert not readiness.reached(*failing)
    clock.now += HOPE_S / 2
    assert readiness.reached(*failing)
