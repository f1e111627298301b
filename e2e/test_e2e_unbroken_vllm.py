"""Streams over real engines that die again and again: greedy, float32, with adapters, token for token what they say
undisturbed. Where the engine's own numerics differ between batchings, undisturbed runs must differ there too.

`SHEAF_E2E_VLLM_STREAMS=200` is the whole promise: longer streams, four kills, two notices of 30 s.
"""

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from streams_said import Request, Said, many, request
from vllm_fleet import STYLES, VllmFleet, vllm_fleet

pytestmark = pytest.mark.timeout(3600)

REAL = int(os.environ.get("SHEAF_E2E_VLLM_STREAMS", "24"))
WHOLE = REAL >= 200
TOKENS, STEP_S = (800, 0.1) if WHOLE else (500, 0.02)
FAULTS = "kknkkn" if WHOLE else "knk"
NOTICE_S = 30.0 if WHOLE else 8.0
OPINIONS = 3


@dataclass
class Faults:
    """One after the other, each when the pod before is back and on the pod that most streams come from, which alternates."""

    fleet: VllmFleet
    left: str
    kills: int = 0
    notices: int = 0
    met: list[int] = field(default_factory=list)
    away: list[float] = field(default_factory=list)

    async def run(self) -> None:
        await asyncio.sleep(2.0)
        for kind in self.left:
            began = time.monotonic()
            pod, streams = await asyncio.to_thread(self.fleet.busiest)
            self.met.append(streams)
            if kind == "k":
                await asyncio.to_thread(self.fleet.kill, pod)
                self.kills += 1
            else:
                await asyncio.to_thread(self.fleet.give_notice, pod, NOTICE_S)
                self.notices += 1
            self.away.append(time.monotonic() - began)
            await asyncio.sleep(1.0)


def kinds() -> list[Request]:
    """Nearly all of full length, a third for each adapter and the base model."""
    names, found = ("tiny", *STYLES), []
    for number in range(REAL):
        path, body = request(number, names[number % 3], TOKENS)
        found.append((path, body | {"ignore_eos": number % 6 > 0}))
    return found


def test_streams_over_real_engines_that_die_say_what_they_would_have_said(tmp_path: Path) -> None:
    with vllm_fleet(tmp_path, STEP_S) as fleet:
        asyncio.run(over_vllm(fleet))


async def over_vllm(fleet: VllmFleet) -> None:
    asked, started = kinds(), time.monotonic()
    alone = [await many(fleet.url, asked, REAL, 3000)]
    assert all(said.whole for said in alone[0]), [said.problem for said in alone[0] if said.problem][:3]
    quiet, faults = time.monotonic() - started, Faults(fleet, FAULTS)
    task, disturbed = asyncio.create_task(faults.run()), []
    while not disturbed or not task.done():
        disturbed += enumerate(await many(fleet.url, asked, REAL, 3000))
    await task
    took, moves = time.monotonic() - started - quiet, fleet.metric("sheaf_gateway_streams_continued_total")
    refused = fleet.metric("sheaf_gateway_streams_not_continued_total")
    broken = [said for _, said in disturbed if not said.whole]
    wrong = {n for n, said in disturbed if said.whole and said.counts() != alone[0][n].counts()}
    while wrong and len(alone) < OPINIONS and not wrong <= differing(alone):
        alone.append(await many(fleet.url, asked, REAL, 3000))
    unstable = differing(alone)
    tokens = sum(said.usage["completion_tokens"] for _, said in disturbed if said.usage)
    print(
        f"\n  {len(disturbed)} streams, {REAL} at once, {TOKENS} tokens each ({tokens} counted); undisturbed {quiet:.0f} s, "
        f"disturbed {took:.0f} s; {faults.kills} kills, {faults.notices} notices of {NOTICE_S:.0f} s, which met "
        f"{', '.join(map(str, faults.met))} streams; away for "
        f"{', '.join(f'{seconds:.0f}' for seconds in faults.away)} s; {moves:.0f} moves, {refused:.0f} refused, "
        f"{len(broken)} broken; {len(wrong)} requests differ from the undisturbed run, {len(unstable)} differ among "
        f"{len(alone)} undisturbed runs, stable ones that differ: {len(wrong - unstable)}"
    )
    assert broken == [], (
        fleet.why_not()[-len(broken) :],
        [(round(said.seconds), round(said.silence)) for said in broken],
    )
    assert wrong <= unstable, [
        parting(alone[0][n], said) for n, said in disturbed if n in wrong - unstable and said.whole
    ]
    assert refused == 0
    assert moves > REAL
    assert (faults.kills, faults.notices) == (FAULTS.count("k"), FAULTS.count("n"))


def differing(runs: list[list[Said]]) -> set[int]:
    """The requests that undisturbed runs answered differently."""
    return {n for n in range(REAL) if len({run[n].counts() for run in runs}) > 1}


def parting(one: Said, other: Said) -> tuple[int, str, str]:
    """The first character that differs, and what follows it in both."""
    place = next((n for n, pair in enumerate(zip(one.text, other.text, strict=False)) if pair[0] != pair[1]), -1)
    return place, one.text[place : place + 20], other.text[place : place + 20]
