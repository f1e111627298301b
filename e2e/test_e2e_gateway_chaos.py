"""Engines that hang, reset, dribble, lie, send garbage and die: each request ends, rightly or in a clear error, in time."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import aiohttp
import pytest
import zmq.asyncio
from chaos_faults import FAULTS, hang
from chaos_fleet import (
    STREAM_HEAD,
    Asked,
    Fleet,
    Outcome,
    Script,
    ask,
    chaos_fleet,
    chunk,
    clients,
    events_with_tokens,
    healthy,
    question,
    response,
)
from chaos_kv_events import Liar, text

pytestmark = pytest.mark.timeout(120)

TIMES = {"connect": "500ms", "firstByte": "1s", "idle": "1s", "stall": "1s", "continuation": "1s"}
MOST_DRAWN = 40
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


def asked_within(fleet: Fleet, model: str, began: float) -> float:
    """The most that a Model's engines may have been asked beside its requests: ten a second since then, and ten."""
    return 10.0 * (time.monotonic() - began) + 10.0


@pytest.mark.parametrize("fault", ["reset", "failure", "half_a_head", "not_http"])
async def test_engines_that_are_all_down_are_hardly_asked_more_than_clients_ask(tmp_path: Path, fault: str) -> None:
    async with chaos_fleet(tmp_path, {"base": 10}, times=TIMES) as fleet, clients() as session:
        for engine in fleet.engines["base"]:
            engine.script = FAULTS[fault]
        began, found = time.monotonic(), []
        for turn in range(15):
            documents = [question("base", f"{turn} {n} " * 40, stream=n % 2 > 0) for n in range(20)]
            found += await asyncio.gather(*(ask(session, fleet, document, BOUND) for document in documents))
        more = asked_within(fleet, "base", began)
        asked = fleet.asked("base")
        for engine in fleet.engines["base"]:
            engine.script = healthy
        assert (await until_right(session, fleet, "base", 70.0)).kind == "right"
    assert {outcome.kind for outcome in found} == {"error"}, found[:3]
    assert len(found) <= asked <= 1.2 * len(found) + more


async def until_right(session: aiohttp.ClientSession, fleet: Fleet, model: str, within: float) -> Outcome:
    """The first right answer."""
    ends = time.monotonic() + within
    while True:
        outcome = await ask(session, fleet, question(model, "well again?", stream=False), BOUND)
        if outcome.kind == "right" or time.monotonic() > ends:
            return outcome
        await asyncio.sleep(0.1)


async def test_streams_that_lose_every_engine_at_once_do_not_storm_them(tmp_path: Path) -> None:
    streams, down = 60, asyncio.Event()

    async def until_down(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if not down.is_set():
            writer.write(STREAM_HEAD)
            for data in events_with_tokens(asked.document)[:3]:
                writer.write(chunk(data))
            await writer.drain()
            await down.wait()
        writer.transport.abort()

    times = {**TIMES, "stall": "60s", "idle": "60s", "firstByte": "60s", "continuation": "3s"}
    async with chaos_fleet(tmp_path, {"base": 5}, times=times) as fleet, clients() as session:
        for engine in fleet.engines["base"]:
            engine.script = until_down
        documents = [{**question("base", f"{n} " * 40, stream=True), "max_tokens": 50} for n in range(streams)]
        under_way = [asyncio.create_task(ask(session, fleet, document, 40.0)) for document in documents]
        async with asyncio.timeout(20):
            while fleet.asked("base") < streams:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        began = time.monotonic()
        down.set()
        found = await asyncio.gather(*under_way)
        more = asked_within(fleet, "base", began)
    assert {(outcome.kind, outcome.detail) for outcome in found} == {("error", "stream_interrupted")}
    assert max(outcome.took for outcome in found) < 30.0
    first = 2 * streams
    assert fleet.asked("base") <= first + 0.2 * streams + more


@asynccontextmanager
async def traffic(session: aiohttp.ClientSession, fleet: Fleet, found: list[Outcome]) -> AsyncIterator[None]:
    """Forty requests a second, each with a prompt of its own, until the end of the block; then all that are left."""
    under_way: set[asyncio.Task[Outcome]] = set()
    over = asyncio.Event()

    async def send() -> None:
        number = 0
        while not over.is_set():
            number += 1
            document = question("base", f"{number} " * 60, stream=number % 2 > 0)
            under_way.add(asyncio.create_task(ask(session, fleet, document, BOUND)))
            await asyncio.sleep(0.025)

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        over.set()
        await sending
        found += await asyncio.gather(*under_way)


async def works(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """As a healthy engine that takes a while."""
    await asyncio.sleep(0.02)
    await healthy(asked, writer)


@pytest.mark.parametrize("fault", ["reset", "failure", "no_json", "hang"])
async def test_one_sick_pod_of_ten_is_soon_out_and_comes_back_when_it_is_well(tmp_path: Path, fault: str) -> None:
    found: list[Outcome] = []
    async with chaos_fleet(tmp_path, {"base": 10}, times=TIMES) as fleet, clients() as session:
        for engine in fleet.engines["base"]:
            engine.script = works
        sick = fleet.engines["base"][0]
        async with traffic(session, fleet, found):
            await seen(sick.asked, 1)
            sick.script, before = FAULTS[fault], len(sick.asked)
            await seen(sick.asked, before + 1)
            fell_ill = sick.asked[before]
            await asyncio.sleep(4.0)
            met = [at - fell_ill for at in sick.asked[before:]]
            sick.script, at_rest = works, len(sick.asked)
            await seen(sick.asked, at_rest + 20)
            shares = [len(engine.asked) for engine in fleet.engines["base"]]
    assert [outcome for outcome in found if outcome.kind != "right"] == []
    at_once = [at for at in met if at < 1.0] if fault == "hang" else met
    print(f"{fault}: asked {len(met)} times while sick, at {[round(at, 1) for at in met]}; shares {shares}")
    assert len(at_once) <= 5 + (0 if fault == "hang" else 3), "five failures, and probes after 1 and 2 s"


async def seen(asked: list[float], count: int) -> None:
    """Wait until so many requests came."""
    async with asyncio.timeout(40):
        while len(asked) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_pod_that_hangs_gets_next_to_nothing_long_before_its_requests_time_out(tmp_path: Path) -> None:
    async with chaos_fleet(tmp_path, {"base": 10}) as fleet, clients() as session:
        for engine in fleet.engines["base"]:
            engine.script = works
        fleet.engines["base"][0].script = hang
        documents = [question("base", f"{n} " * 60, stream=n % 2 > 0) for n in range(300)]
        asking = []
        for document in documents:
            asking.append(asyncio.create_task(ask(session, fleet, document, 10.0)))
            await asyncio.sleep(0.02)
        found = await asyncio.gather(*asking)
    late = [outcome for outcome in found if outcome.kind != "right"]
    assert len(late) == len(fleet.engines["base"][0].asked) <= 5


async def test_a_pod_that_hangs_with_a_prefix_that_all_share_is_left_as_soon_as_it_is_silent_for_too_long(
    tmp_path: Path,
) -> None:
    shared = "All that was said before, word for word. " * 400
    async with chaos_fleet(tmp_path, {"base": 10}) as fleet, clients() as session:
        engines = fleet.engines["base"]
        for engine in engines:
            engine.script = works
        for n in range(60):
            await ask(session, fleet, question("base", f"{n} " * 60, stream=True), BOUND)
        holder = (await ask(session, fleet, question("base", shared, stream=True), BOUND)).pod
        sick = engines[int(holder.rpartition("-")[2])]
        sick.script, before = hang, len(sick.asked)
        asking = []
        for n in range(300):
            document = question("base", f"{shared} {n}", stream=n % 2 > 0)
            asking.append(asyncio.create_task(ask(session, fleet, document, 10.0)))
            await asyncio.sleep(0.02)
        found = await asyncio.gather(*asking)
        drawn = sick.asked[before:]
    print(f"drew {len(drawn)} requests in {drawn[-1] - drawn[0]:.2f} s")
    assert sum(outcome.kind != "right" for outcome in found) == len(drawn) <= MOST_DRAWN


def nonsense() -> dict[str, Script]:
    """Agents of one Model, by pod: what each reports."""

    def always(report: object) -> Script:
        async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.05 if "after" in asked.path else 0)
            writer.write(response(json.dumps(report).encode()))

        return script

    ready = {"version": 1, "engine": "Ready", "engineEpoch": 1}
    reports: list[object] = [
        {**ready, "load": {"running": 10**400, "waiting": 10**400, "kvUsage": 1.0}, "kvTokens": 10**309},
        {**ready, "load": {"running": -8, "waiting": 8, "kvUsage": 0.0}, "maxModelLen": -(10**30)},
        {**ready, "load": {"running": "many", "kvUsage": float("nan")}},
        {**ready, "engineEpoch": -(10**300), "version": 10**300, "draining": True, "drainDeadline": float("inf")},
        {**ready, "adapters": [{"name": "\x00", "state": "Resident"}] * 1000},
        {"engine": "Exploded"},
        ["no", "object"],
    ]
    pods = {f"lied-{place}": always(report) for place, report in enumerate(reports)}
    for place, fault in enumerate(("reset", "not_http", "no_json", "headers_without_end", "json_too_deep", "hang")):
        pods[f"lied-{len(reports) + place}"] = FAULTS[fault]
    return pods


async def test_agents_that_report_nonsense_make_no_request_fail(tmp_path: Path) -> None:
    agents = nonsense()
    async with chaos_fleet(tmp_path, {"lied": len(agents)}, agents) as fleet, clients() as session:
        found = []
        for turn in range(12):
            documents = [question("lied", f"{turn} {n} " * 50, stream=n % 2 > 0) for n in range(16)]
            found += await asyncio.gather(*(ask(session, fleet, document, BOUND) for document in documents))
            await asyncio.sleep(0.1)
        counted = await fleet.metrics(session)
        assert all(agent.asked for agent in fleet.agents.values())
        assert "Traceback" not in fleet.log()
    assert [outcome for outcome in found if outcome.kind != "right"] == []
    assert counted["sheaf_gateway_app_failures_total"] == 0


async def test_an_index_of_lies_makes_no_request_fail(tmp_path: Path) -> None:
    context = zmq.asyncio.Context()
    liars = {f"base-{place}": Liar(context, place, garbles=place > 1) for place in range(4)}
    facts = {pod: {"kvEvents": liar.events, "kvReplay": liar.replays} for pod, liar in liars.items()}
    agents = {pod: liar.agent for pod, liar in liars.items()}
    lying = [asyncio.create_task(each) for liar in liars.values() for each in (liar.lie(), liar.replay())]
    draw, found, most, heard = Random(3), [], 0.0, 0.0
    try:
        async with chaos_fleet(tmp_path, {"base": 4}, agents, facts) as fleet, clients() as session:
            ends = time.monotonic() + 60.0
            while len(found) < 200 or (most <= 100 and time.monotonic() < ends):
                said = [text([draw.choice([1, 1, 1, draw.randrange(26)]) for _ in range(12)]) for _ in range(8)]
                documents = [question("base", words, stream=draw.random() < 0.5) for words in said]
                found += await asyncio.gather(*(ask(session, fleet, document, BOUND) for document in documents))
                counted = await fleet.metrics(session)
                most = max(most, counted["sheaf_gateway_kv_blocks"])
                heard = max(heard, counted["sheaf_gateway_kv_subscriptions"])
                await asyncio.sleep(0.1)
            assert "Traceback" not in fleet.log()
    finally:
        for task in lying:
            task.cancel()
        await asyncio.gather(*lying, return_exceptions=True)
        context.destroy(linger=0)
    assert [outcome for outcome in found if outcome.kind != "right"] == []
    assert most > 100, "the lies were believed"
    assert heard > 0
    assert counted["sheaf_gateway_app_failures_total"] == 0
    print(
        f"{len(found)} right answers, at most {most:.0f} blocks believed of {sum(x.published for x in liars.values())} lies"
    )
