"""An AutoscalingPolicy in a cluster: the operator asks the gateways' pods themselves, replicas follow, nobody waits in vain;
and the gateways know of each other's requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from resilience.fleet import Fleet, emulated, manifest, within
from resilience.load import Load
from resilience.writes import Writes

pytestmark = pytest.mark.timeout(300, func_only=True)

BIGGEST = 3
# A step takes 50 ms: an answer of 40 tokens two seconds, whatever else this machine does.
SLOW = ("--profile=custom", "--speed=0.2")
STREAMS: dict[str, Any] = {"clients": 10, "tokens": 40, "pause": 0.0}


@pytest.fixture(scope="module")
def elastic(sheaf: Fleet) -> Iterator[str]:
    """A Model whose number its policy decides."""
    declare(sheaf)
    sheaf.kubectl.apply(manifest("SLO", "elastic", {"e2e": {"p95": "30s"}}))
    references = {"autoscalingPolicyRef": {"name": "elastic"}, "sloRef": {"name": "elastic"}}
    sheaf.serve("elastic", emulated(*SLOW, replicas=1, **references), timeout=120)
    yield "elastic"
    sheaf.forget("elastic")
    sheaf.kubectl.delete("autoscalingpolicy", "elastic")
    sheaf.kubectl.delete("slo", "elastic")


def declare(sheaf: Fleet, **spec: Any) -> None:
    quick = {"scaleUp": {"stabilization": "0s"}, "scaleDown": {"stabilization": "10s"}}
    fields = {"signal": "Concurrency", "target": 2, "minReplicas": 1, "maxReplicas": BIGGEST, **quick, **spec}
    sheaf.kubectl.apply(manifest("AutoscalingPolicy", "elastic", fields))


def record(sheaf: Fleet) -> dict[str, Any]:
    model = sheaf.kubectl.get("model", "elastic") or {}
    return dict(model.get("status", {}).get("autoscaling", {}))


def at(sheaf: Fleet, count: int) -> bool:
    status = (sheaf.kubectl.get("model", "elastic") or {}).get("status", {})
    wanted = status.get("autoscaling", {}).get("desiredReplicas")
    return wanted == status.get("readyReplicas", 0) == len(sheaf.pods("elastic")) == count


def test_replicas_follow_what_the_gateways_are_asked_and_the_status_says_why(sheaf: Fleet, elastic: str) -> None:
    with Load(sheaf.url, [elastic], **STREAMS) as load:
        took = within(90, "as many as may be", lambda: at(sheaf, BIGGEST), every=0.5)
        load.more(20)
    print(f"\n  {BIGGEST} replicas served after {took:.1f} s")
    took = within(150, "one replica again", lambda: at(sheaf, 1), every=0.5)
    print(f"  one again {took:.1f} s after the last request")
    assert load.failed == 0, load
    assert {one["reason"] for one in record(sheaf)["decisions"]} == {"Concurrency"}
    told = {event["reason"] for event in sheaf.kubectl.list("events.events.k8s.io") if about(event, elastic)}
    assert {"ScaledUp", "ScaledDown"} <= told
    windows = (sheaf.kubectl.get("slo", "elastic") or {})["status"]["windows"]
    assert {one["window"]: one for one in windows}["5m"]["requests"] >= 20


def about(event: dict[str, Any], name: str) -> bool:
    return bool(event["regarding"]["name"] == name)


def test_a_model_at_zero_answers_whoever_wakes_it_and_sleeps_without_a_write(sheaf: Fleet, elastic: str) -> None:
    declare(sheaf, minReplicas=0, scaleToZero={"after": "5s"})
    within(90, "asleep", lambda: at(sheaf, 0), every=0.5)
    within(60, "its pod is gone", lambda: not sheaf.kubectl.list("pods", f"sheaf.dev/model={elastic}"), every=0.5)
    with Load(sheaf.url, [elastic], **STREAMS) as load:
        pass
    assert load.failed == 0, load
    within(90, "asleep again", lambda: at(sheaf, 0), every=0.5)
    reasons = [one["reason"] for one in record(sheaf)["decisions"]]
    assert "Woken" in reasons
    assert reasons[0] == "Idle"
    within(60, "its pod is gone", lambda: not sheaf.kubectl.list("pods", f"sheaf.dev/model={elastic}"), every=0.5)
    within(90, "the windows of its SLO are told", lambda: quiet(sheaf, 20.0), every=0.0)


def quiet(sheaf: Fleet, seconds: float) -> bool:
    """Whether nothing is written for so long."""
    writes = Writes(sheaf)
    try:
        within(seconds, "a write", writes)
    except AssertionError:
        return True
    return False


def test_gateways_know_of_each_others_requests(sheaf: Fleet) -> None:
    pods = sheaf.kubectl.list("pods", "app.kubernetes.io/name=sheaf-gateway")
    urls = [f"http://{pod['status']['podIP']}:8000" for pod in pods]
    assert len(urls) == 2
    within(30, "each hears the other", lambda: [heard(url, "peers") for url in urls] == [1.0, 1.0])
    before = heard(urls[0], "heard_total")
    with Load(urls[1], ["good"], clients=2) as load:
        load.more(20)
    assert load.failed == 0, load
    within(10, "the other's requests were heard of", lambda: heard(urls[0], "heard_total") > before)


def heard(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=10).text
    found = re.search(rf"^sheaf_gateway_gossip_{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else -1.0
