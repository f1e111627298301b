"""Streams over pods that die: no stream breaks, and every one says what it would have said.

`SHEAF_E2E_STREAMS` and `SHEAF_E2E_LOSSES` set the scale; `SHEAF_E2E_AT_ONCE` how many streams run together.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from emulator_fleet import EmulatorFleet, Pod, emulator_fleet
from streams_said import Request, Said, client, many, request, stream

pytestmark = pytest.mark.timeout(900)

STREAMS, LOSSES = int(os.environ.get("SHEAF_E2E_STREAMS", "2000")), int(os.environ.get("SHEAF_E2E_LOSSES", "100"))
AT_ONCE = int(os.environ.get("SHEAF_E2E_AT_ONCE", "200"))
PODS, PROMPTS, TOKENS, NOTICE_S = 6, 48, 120, 1.5
LONGEST_S, MOST_MEMORY = 60.0, 200 * 2**20
GRACE_S = 5.0


@dataclass
class Losing:
    """Loses pods, two at a time and evenly over the streams; every third is told a moment before. They come back."""

    fleet: EmulatorFleet
    losses: int
    share: Callable[[], float]
    kills: int = 0
    notices: int = 0
    away: set[str] = field(default_factory=set)
    draw: random.Random = field(default_factory=lambda: random.Random(7))

    @property
    def lost(self) -> int:
        return self.kills + self.notices

    async def run(self) -> None:
        turns = iter(range(self.losses))
        await asyncio.gather(self._lose(turns), self._lose(turns))

    async def _lose(self, turns: object) -> None:
        for turn in turns:
            while self.share() * self.losses < turn + 1 and self.share() < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            pod = self.draw.choice([pod for pod in self.fleet.running() if pod.name not in self.away])
            self.away.add(pod.name)
            await self._end(pod, told=turn % 3 == 2)
            await asyncio.to_thread(self.fleet.welcome, pod)
            self.away.discard(pod.name)

    async def _end(self, pod: Pod, *, told: bool) -> None:
        if told:
            self.fleet.notice(pod, NOTICE_S)
            await asyncio.sleep(NOTICE_S)
        self.fleet.lose(pod)
        self.notices += told
        self.kills += not told


@dataclass
class Crowd:
    """Clients that ask again and again, until all streams were had and all pods were lost."""

    url: str
    kinds: list[Request]
    found: list[tuple[int, Said]] = field(default_factory=list)
    asked: int = 0

    def share(self) -> float:
        return len(self.found) / STREAMS

    async def run(self, going_on: Callable[[], bool]) -> None:
        async with client(LONGEST_S * 3) as session:

            async def one() -> None:
                while self.asked < STREAMS or going_on():
                    number, self.asked = self.asked % PROMPTS, self.asked + 1
                    self.found.append((number, await stream(session, self.url, *self.kinds[number])))

            await asyncio.gather(*(one() for _ in range(AT_ONCE)))


def test_a_pod_that_drains_without_a_deadline_is_left_in_time_and_nothing_is_cut(tmp_path: Path) -> None:
    with emulator_fleet(tmp_path, 2, "--profile", "h100-8b", "--speed", "0.5", accessLog=False) as fleet:
        asyncio.run(over_a_drain(fleet))


async def over_a_drain(fleet: EmulatorFleet) -> None:
    """Short streams end where they are, long ones move before the grace period is over."""
    fleet.spec = {"drainTimeout": f"{GRACE_S}s"}
    fleet.write()
    kinds = [request(number, "base", 60 if number % 2 else 800) for number in range(1, 41)]
    alone = await many(fleet.url, kinds, len(kinds))
    asking = asyncio.create_task(many(fleet.url, kinds, len(kinds)))
    await asyncio.sleep(1.0)
    fleet.notice(fleet.pods[0], None)
    started = time.monotonic()
    await asyncio.sleep(GRACE_S - 0.5)
    left = [line for line in fleet.lines("sheaf_gateway_pod_in_flight") if fleet.pods[0].name in line]
    await asyncio.sleep(max(0.0, started + GRACE_S - time.monotonic()))
    fleet.lose(fleet.pods[0])
    said, moves = await asking, fleet.metric("sheaf_gateway_streams_continued_total")
    print(f"\n  {len(said)} streams, {moves:.0f} moved, left when the grace period ended: {left}")
    assert [each.problem for each in said if not each.whole] == []
    assert [each.counts() for each in said] == [each.counts() for each in alone]
    assert [line for line in left if not line.endswith(" 0.0")] == []
    assert 0 < moves < len(said)


def test_streams_over_pods_that_die_say_what_they_would_have_said(tmp_path: Path) -> None:
    asyncio.run(over_emulators(tmp_path))


async def over_emulators(folder: Path) -> None:
    config = {"accessLog": False, "limits": {"maxAttempts": 8, "maxDecisions": 2 * STREAMS}}
    with emulator_fleet(folder, PODS, "--profile", "h100-8b", "--speed", "0.5", **config) as fleet:
        kinds = [request(number, "base", TOKENS) for number in range(PROMPTS)]
        alone = await many(fleet.url, kinds, 24)
        assert all(said.whole for said in alone), [said.problem for said in alone if said.problem]
        before, started = fleet.memory(), time.monotonic()
        crowd = Crowd(fleet.url, kinds)
        losing = Losing(fleet, LOSSES, crowd.share)
        task = asyncio.create_task(losing.run())
        await crowd.run(lambda: not task.done())
        await task
        judge(fleet, crowd, losing, alone, fleet.memory() - before, time.monotonic() - started)


def judge(fleet: EmulatorFleet, crowd: Crowd, losing: Losing, alone: list[Said], grown: int, seconds: float) -> None:
    broken = [said for _, said in crowd.found if not said.whole]
    wrong = [
        (said.counts(), alone[n].counts())
        for n, said in crowd.found
        if said.whole and said.counts() != alone[n].counts()
    ]
    moves = fleet.metric("sheaf_gateway_streams_continued_total")
    refused = fleet.metric("sheaf_gateway_streams_not_continued_total")
    longest, silence = (max(getattr(said, name) for _, said in crowd.found) for name in ("seconds", "silence"))
    print(
        f"\n  {len(crowd.found)} streams, {AT_ONCE} at once; {losing.kills} pods killed, {losing.notices} after a notice; "
        f"{moves:.0f} continuations, {refused:.0f} refused, {len(broken)} broken, {len(wrong)} different; {seconds:.0f} s; "
        f"longest stream {longest:.1f} s, longest silence {silence:.1f} s; memory grew by {grown / 2**20:.0f} MiB"
    )
    assert broken == [], [(said.problem, [fleet.outcomes(name) for name in said.ids]) for said in broken][:3]
    assert wrong == [], wrong[:2]
    assert losing.lost == LOSSES
    assert moves > LOSSES
    assert refused == 0
    assert longest < LONGEST_S
    assert grown < MOST_MEMORY
    assert fleet.metric("sheaf_gateway_journal_bytes") == 0
    assert fleet.metric("sheaf_gateway_continuations_waiting") == 0
