"""Making the simulator faster changes nothing that it says: two runs are the same to the last bit as when they were noted.

Whoever changes a decision on purpose (routing, admission, planning, the timing model) notes the new digests and says so.
"""

import hashlib
import random
from dataclasses import astuple
from typing import Any

import pytest
from sheaf.simulator.calls import Call
from sheaf.simulator.market import Market, Zone
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.world import Result, Setting, World
from sheaf_crds import SLO, Adapter, AutoscalingPolicy, KubeObject, Model

KINDS = {"Model": Model, "Adapter": Adapter, "SLO": SLO, "AutoscalingPolicy": AutoscalingPolicy}
CHAT = "a82215d72deaab8e"
FLEET = "0aafbc65f0631aec"


def declared(kind: str, name: str, **spec: Any) -> KubeObject:
    metadata = {"name": name, "uid": f"{kind}-{name}", "generation": 1}
    return KINDS[kind].model_validate({"metadata": metadata, "spec": spec})


def model(name: str, accelerator: str = "nvidia-h100", **spec: Any) -> KubeObject:
    return declared("Model", name, source="hf://a/b", accelerators=[{"type": accelerator}], **spec)


def calls(count: int, rate: float, names: list[tuple[str, str | None]], longest: int) -> list[Call]:
    """Conversations whose numbers come of plain arithmetic, alike on every machine."""
    draw, at, said, found = random.Random(5), 0.0, {}, []
    for _ in range(count):
        at += 2.0 * draw.random() / rate
        session = draw.randrange(count // 4)
        name, adapter = names[session % len(names)]
        before = said.get(session, ((session % 7, 40 * (session % 7) + 16),))
        segments = (*before, (1000 + len(found), 1 + draw.randrange(longest)))
        tokens, output = sum(length for _, length in segments), 1 + draw.randrange(150)
        if tokens + output > 8000:
            continue
        said[session] = (*segments, (1_000_000 + len(found), output))
        found.append(Call(at, name, segments, tokens, output, adapter, f"t{session % 3}", session))
    return found


def digest(result: Result) -> str:
    outcome, found = result.outcome, hashlib.sha256()
    for column in (outcome.arrival, outcome.ttft, outcome.tpot, outcome.prompt, outcome.cached, outcome.output):
        found.update(column.tobytes())
    rest = (outcome.refused, outcome.moved, astuple(result.bill), [astuple(sample) for sample in result.samples])
    found.update(repr((rest, result.seconds, result.too_long)).encode())
    return found.hexdigest()[:16]


def chat() -> Result:
    """One Model that scales, with adapters, tenants, a promise, and spot pods of which some are taken without a word."""
    objects = [
        model(
            "chat",
            "nvidia-l4",
            replicas=3,
            lora={"slots": 2, "maxRank": 16},
            spot={"policy": "Preferred", "onDemandFloor": 1},
            sloRef={"name": "fast"},
            autoscalingPolicyRef={"name": "steady"},
            engine={"name": "vllm", "args": ["--max-model-len=8192", "--max-num-seqs=24"]},
        ),
        *(
            declared("Adapter", name, modelRef={"name": "chat"}, source=f"s3://x/{name}")
            for name in ("ada", "bob", "cyd")
        ),
        declared(
            "SLO", "fast", ttft={"p95": "2s"}, queue={"maxRequests": 50, "maxWait": "5s"}, fairness={"policy": "DLPM"}
        ),
        declared("AutoscalingPolicy", "steady", signal="SLO", minReplicas=2, maxReplicas=6),
    ]
    names = [("chat", None), ("chat", "ada"), ("chat", "bob"), ("chat", "cyd")]
    market = Market((Zone("z", 10.0, (5,) * 8 + (1,) * 2 + (5,) * 100),), notice_s=0.0)
    world = World(objects, POLICIES["sheaf"](1), Setting(market=market, cold_start_s=15.0))
    return world.run(calls(1500, 15.0, names, 400))


def fleet() -> Result:
    """Two Models of twelve pods each whose caches are too small, asked as fast as they can answer."""
    profile = {"engine": {"name": "vllm", "args": ["--max-model-len=8192", "--block-size=32"]}}
    objects = [model("one", replicas=12, **profile), model("two", replicas=12, **profile)]
    world = World(objects, POLICIES["sheaf"](1), Setting(cold_start_s=15.0))
    for name in ("one", "two"):
        world._profiles[name] = world._profiles[name].with_changes(num_blocks=300, max_num_batched_tokens=2048)
    return world.run(calls(2000, 160.0, [("one", None), ("two", None), ("one", None)], 900))


@pytest.mark.parametrize(("run", "noted"), [(chat, CHAT), (fleet, FLEET)])
def test_a_run_is_the_same_to_the_last_bit_as_when_it_was_noted(run, noted):
    result = run()
    assert digest(result) == noted
    assert len(result.outcome.ttft) > 900
