"""A rolling update of engines and gateways at once, under load, fails no request."""

from __future__ import annotations

import time

import pytest
from chart.helm import CHART

from resilience.fleet import Fleet, emulated, uids
from resilience.load import Load

pytestmark = pytest.mark.timeout(400, func_only=True)

REQUESTS = 10_000
LONGEST = 240.0


def test_none_of_ten_thousand_requests_fails_while_engines_and_gateways_are_replaced(sheaf: Fleet) -> None:
    engines = uids(sheaf.pods("good"))
    gateways = uids(sheaf.kubectl.list("pods", "app.kubernetes.io/name=sheaf-gateway"))
    began = time.monotonic()
    with Load(sheaf.url, ["good"], clients=12, pause=0.0) as load:
        sheaf.kubectl.patch("model", "good", {"spec": emulated("--profile=instant", "--max-num-seqs=128")})
        upgrade(sheaf, {"changed": "once"})
        sheaf.deployments("gateway", "operator", timeout=120)
        sheaf.settled("good", 120)
        print(f"\n  replaced after {time.monotonic() - began:.0f} s and {load.answered} answers")
        load.wait(REQUESTS, LONGEST - (time.monotonic() - began))
    assert not engines & uids(sheaf.pods("good"))
    assert not gateways & uids(sheaf.kubectl.list("pods", "app.kubernetes.io/name=sheaf-gateway"))
    assert load.answered >= REQUESTS
    assert load.failed == 0, load


def upgrade(sheaf: Fleet, annotations: dict[str, str]) -> None:
    """`helm upgrade` with annotations of gateways and operators changed, which replaces their pods."""
    changed = {part: {**sheaf.values[part], "podAnnotations": annotations} for part in ("gateway", "operator")}
    options = ["--namespace", sheaf.namespace, "--take-ownership"]
    sheaf.installed.helm("upgrade", "sheaf", str(CHART), *options, values={**sheaf.values, **changed})
