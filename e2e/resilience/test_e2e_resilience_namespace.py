"""Deleting: a Model's pods finish what they do, and a namespace with everything in it ends."""

from __future__ import annotations

import secrets

import httpx
import pytest

from resilience.fleet import Fleet, emulated, fleet, manifest, within

pytestmark = pytest.mark.timeout(300, func_only=True)

GRACE = 75.0  # of a gateway: lame duck, requests under way, ten seconds; engines have 20


def test_a_deleted_model_ends_its_streams_before_its_pods_go(sheaf: Fleet) -> None:
    sheaf.serve("leaving", emulated("--profile=h100-8b", drainTimeout="30s"))
    body = {"model": "leaving", "prompt": "hello", "max_tokens": 600, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{sheaf.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        sheaf.kubectl.delete("model", "leaving", wait=False)
        events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]", events[-1]
    assert len(events) >= 600
    sheaf.kubectl.wait_list("pods", "gone", lambda pods: not pods, "sheaf.dev/model=leaving", 40)


def test_a_namespace_ends_with_everything_in_it_within_its_grace(sheaf: Fleet) -> None:
    chosen = {**sheaf.values, "crds": {"install": False}}
    with fleet(sheaf.cluster, f"resilience-end-{secrets.token_hex(3)}", chosen) as doomed:
        doomed.serve("one", emulated())
        adapter = {"modelRef": {"name": "one"}, "source": "hf://org/none", "replicas": 1}
        doomed.kubectl.apply(manifest("Adapter", "lora", adapter), manifest("SLO", "chat", {}))
        doomed.says("adapter", "lora", "Ready", "False")
        admin = doomed.cluster.kubectl
        admin.delete("namespace", doomed.namespace, wait=False)
        gone = within(GRACE, "the namespace is gone", lambda: not admin.get("namespace", doomed.namespace), every=0.5)
    print(f"\n  gone after {gone:.0f} s")
