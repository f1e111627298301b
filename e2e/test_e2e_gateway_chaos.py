"""Engines that hang, reset, dribble, lie, send garbage and die: each request ends, rightly or in a clear error, in time."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from chaos_faults import FAULTS
from chaos_fleet import Outcome, ask, chaos_fleet, clients, question

pytestmark = pytest.mark.timeout(120)

TIMES = {"connect": "500ms", "firstByte": "1s", "idle": "1s", "stall": "1s", "continuation": "1s"}
BOUND = 12.0
"""Seconds: three attempts of a second to the head and a second within the body, a continuation, and room."""


def model_of(fault: str, *, alone: bool) -> str:
    return f"{fault.replace('_', '-')}-{'alone' if alone else 'one'}"


async def some(session, fleet, model: str, count: int = 3) -> list[Outcome]:
    """Requests one after the other, streamed ones in parallel with others."""

    async def row(stream: bool) -> list[Outcome]:
        return [await ask(session, fleet, question(model, f"{model} {n}", stream=stream), BOUND) for n in range(count)]

    whole, streamed = await asyncio.gather(row(False), row(True))
    return whole + streamed


async def test_every_fault_of_an_engine_ends_in_a_right_answer_or_an_error_in_time(tmp_path: Path) -> None:
    models = {model_of(fault, alone=alone): 1 if alone else 3 for fault in FAULTS for alone in (True, False)}
    async with chaos_fleet(tmp_path, models, times=TIMES) as fleet, clients() as session:
        for fault, script in FAULTS.items():
            for alone in (True, False):
                fleet.engines[model_of(fault, alone=alone)][0].script = script
        found = await asyncio.gather(*(some(session, fleet, model) for model in models))
        outcomes = dict(zip(models, found, strict=True))
        after = await fleet.metrics(session)
    wrong = {model: [o for o in got if o.kind == "wrong"] for model, got in outcomes.items()}
    assert {model: got for model, got in wrong.items() if got} == {}
    retried = [model_of(fault, alone=False) for fault in FAULTS if fault != "refusal_as_a_page"]
    assert [m for m in retried if any(o.kind != "right" for o in outcomes[m][:3])] == [], "whole answers are retried"
    assert Counter(o.kind for got in outcomes.values() for o in got)["error"] > len(FAULTS)
    assert after["sheaf_gateway_app_failures_total"] == 0
    assert "Traceback" not in fleet.log()
