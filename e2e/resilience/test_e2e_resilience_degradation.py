"""A spot pod is evicted and no capacity is to be had: what is left serves by SLO class, and all mends itself when capacity is back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster.faults import Faults

from resilience.classes import Asked, Classes, since
from resilience.fleet import Fleet, emulated, manifest, uids

pytestmark = pytest.mark.timeout(300, func_only=True)

PROMISED_S = 3.0
SETTLED_S, WATCHED_S = 8, 15
SLOW = ("--profile=h100-8b", "--speed=0.3", "--max-num-seqs=4")
PROMISE = {"class": "Interactive", "ttft": {"p95": "3s"}, "queue": {"maxRequests": 60, "maxWait": "8s"}}


@pytest.fixture
def scarce(sheaf: Fleet) -> Iterator[str]:
    """A Model on spot nodes alone with a promise, whose two replicas run four requests at once each."""
    sheaf.kubectl.apply(manifest("SLO", "prompt", PROMISE))
    spec = emulated(*SLOW, spot={"policy": "Required"}, replicas=2, sloRef={"name": "prompt"})
    sheaf.serve("scarce", spec)
    yield "scarce"
    sheaf.forget("scarce")
    sheaf.kubectl.delete("slo", "prompt")


def test_without_capacity_interactive_keeps_its_promise_and_batch_gets_what_is_left(
    sheaf: Fleet, faults: Faults, scarce: str
) -> None:
    with Classes(sheaf.url, scarce, batch=48) as classes:
        time.sleep(SETTLED_S)
        settled = time.monotonic()
        time.sleep(WATCHED_S)
        before = served(since(classes.batch_asked, settled))
        faults.no_capacity(sheaf.namespace)
        sheaf.kubectl.delete("resourcequota", "sheaf-test-no-capacity")
        lost = sheaf.pods(scarce)[0]
        sheaf.kubectl.delete("pod", lost["metadata"]["name"])
        assert "add nodes" in sheaf.says("model", scarce, "Ready", "False", "Unschedulable")
        sheaf.kubectl.wait_list(
            "pods", "the lost one gone", lambda pods: not uids([lost]) & uids(pods), f"sheaf.dev/model={scarce}"
        )
        short = time.monotonic()
        time.sleep(WATCHED_S)
        with_one = served(since(classes.batch_asked, short))
        sheaf.says("model", scarce, "Available", "True")
        faults.capacity(sheaf.namespace)
        sheaf.settled(scarce)
        mended = time.monotonic()
        time.sleep(WATCHED_S)
        after = served(since(classes.batch_asked, mended))
    everything = [*classes.interactive_asked, *classes.batch_asked]
    print(f"\n  {len(everything)} requests; batch served in {WATCHED_S} s: {before}, {with_one} with one pod, {after}")
    assert [one for one in everything if not one.right] == []
    assert kept(since(classes.interactive_asked, settled)) >= 0.95, late(classes.interactive_asked, short)
    assert kept(since(classes.interactive_asked, short)) >= 0.95, late(classes.interactive_asked, short)
    assert 0 < with_one < 0.75 * before
    assert after > 1.25 * with_one


def served(asked: list[Asked]) -> int:
    """How many were answered."""
    return sum(one.status == 200 for one in asked)


def kept(asked: list[Asked]) -> float:
    """The share whose first token came as promised."""
    within = sum(one.status == 200 and one.first <= PROMISED_S for one in asked)
    print(f"  interactive: {within} of {len(asked)} within {PROMISED_S} s")
    return within / len(asked)


def late(asked: list[Asked], short: float) -> list[tuple[float, int, float]]:
    """When those were sent that missed the promise, before and after there was only one pod; their status and seconds."""
    missed = [one for one in asked if one.status != 200 or one.first > PROMISED_S]
    return [(round(one.at - short, 1), one.status, round(one.first, 1)) for one in missed]
