"""One size of the fleet, from nothing to the end: declared, converged, changed, left alone, kept busy, taken over."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from changes import CHANGES, react
from fleet import Fleet, Size, declare
from gauges import Cost, audited_writes, cost, is_up, memory
from scene import AGENT_PORT, TOKEN, Daemon, Scene, say

STARTS = 600.0
PROGRESS = 15.0
CALMS = 20.0
LOAD_EVERY = 1.0

Row = dict[str, Any]


@dataclass
class Stage:
    """A fleet of one size in a namespace of its own, and the operators that worked on it."""

    scene: Scene
    name: str
    size: Size
    converges: float
    profile: Path | None = None
    calms: float = CALMS
    rows: list[Row] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.namespace = f"bench-{self.name}"
        self.fleet = Fleet(self.scene.api, self.namespace, self.size)
        self.peak = self.idle_cpu = 0.0
        self._lives = 0

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Everything declared and watched, and no operator yet."""
        say(f"{self.name}: declaring {self.size.models} Models, {self.size.adapters} Adapters, {self.size.pods} pods")
        await self.scene.namespace(self.namespace)
        secret = {"metadata": {"name": "agent-token"}, "stringData": {"token": TOKEN}}
        await self.scene.api.call("POST", f"/api/v1/namespaces/{self.namespace}/secrets", secret)
        took = await _timed(declare(self.scene.api, self.namespace, self.size))
        self._row("declare the objects (by the benchmark)", seconds=took)
        watching = asyncio.create_task(self.fleet.run())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    @asynccontextmanager
    async def operator(self, *, profiled: bool = False) -> AsyncIterator[Daemon]:
        """An operator at work."""
        self._lives += 1
        profile = self.profile if profiled else None
        daemon = self.scene.operator(f"op-{self.name}-{self._lives}", self.namespace, profile)
        try:
            yield daemon
        finally:
            daemon.stop()

    async def converge(self, daemon: Daemon) -> float:
        """From the operator's start until every Model and Adapter is as declared; seconds."""
        began = time.perf_counter()
        telling = asyncio.create_task(self._tell(began))
        try:
            await self.fleet.settle(self.converges)
        finally:
            telling.cancel()
        took = time.perf_counter() - began
        spent = await cost(daemon.url, daemon.pid)
        self._row("converge from nothing", seconds=took, **_spent(spent))
        self._remember(daemon)
        return took

    async def calm(self, daemon: Daemon) -> None:
        """Return when nothing has been written for a while, and note what an idle operator costs."""
        while True:
            before = await cost(daemon.url, daemon.pid)
            await asyncio.sleep(self.calms)
            spent = (await cost(daemon.url, daemon.pid)).since(before)
            if not spent.writes:
                self.idle_cpu = spent.cpu / self.calms
                return

    async def change(self, daemon: Daemon, count: int) -> None:
        """Every kind of change, so many times, and its cost beyond that of an idle operator."""
        for name in CHANGES:
            say(f"{self.name}: {name}, {count} times")
            before, began = await cost(daemon.url, daemon.pid), time.perf_counter()
            found = await react(self.fleet, name, count, seed=1)
            lasted = time.perf_counter() - began
            spent = (await cost(daemon.url, daemon.pid)).since(before)
            self.times += found.times
            beyond = max(0.0, spent.cpu - self.idle_cpu * lasted)
            p50, p99 = median(found.times), quantile(found.times, 0.99)
            self._row(name, p50=p50, p99=p99, **_spent(spent, count), cpu_ms=1000 * beyond / count)
        self._remember(daemon)

    async def rest(self, daemon: Daemon, minutes: float) -> int:
        """Writes while nobody changes anything."""
        say(f"{self.name}: {minutes:g} quiet minutes")
        log = self.scene.cluster.layout.audit_log
        offset = log.stat().st_size
        spent = await self._watched(daemon, 60 * minutes)
        audited = audited_writes(log, offset)
        self._row(f"{minutes:g} quiet minutes", audited_writes=audited, **self._rate(spent, 60 * minutes))
        return int(max(spent.writes, audited or 0))

    async def keep_busy(self, daemon: Daemon, seconds: float, count: int) -> None:
        """Every agent's load changes each second: what that costs, and one kind of change meanwhile."""
        say(f"{self.name}: every agent's load changes each second")
        await self._load_changes(LOAD_EVERY)
        try:
            spent = await self._watched(daemon, seconds)
            found = await react(self.fleet, "edit an Adapter", count, seed=2)
        finally:
            await self._load_changes(0.0)
        p50, p99 = median(found.times), quantile(found.times, 0.99)
        self._row("every agent's load changes each second", p50=p50, p99=p99, **self._rate(spent, seconds))
        self._remember(daemon)

    async def take_over(self) -> None:
        """A new operator over a fleet that is as declared: until its view is complete, and its writes."""
        say(f"{self.name}: another operator takes over")
        began = time.perf_counter()
        async with self.operator() as daemon:
            await _until(lambda: is_up(daemon.url), STARTS)
            took = time.perf_counter() - began
            await asyncio.sleep(CALMS / 2)
            spent = await cost(daemon.url, daemon.pid)
            self._row("take over", seconds=took, **_spent(spent))
            self._remember(daemon)

    def remember_memory(self, daemon: Daemon) -> None:
        """Memory now and at its peak."""
        now, peak = memory(daemon.pid)
        self._row("memory", rss_mib=now, peak_mib=peak)

    async def _watched(self, daemon: Daemon, seconds: float) -> Cost:
        before = await cost(daemon.url, daemon.pid)
        await asyncio.sleep(seconds)
        return (await cost(daemon.url, daemon.pid)).since(before)

    async def _load_changes(self, every: float) -> None:
        url = f"http://{self.scene.address}:{AGENT_PORT}/busy"
        async with aiohttp.ClientSession() as http, http.put(url, params={"seconds": str(every)}) as answer:
            answer.raise_for_status()

    async def _tell(self, began: float) -> None:
        while True:
            await asyncio.sleep(PROGRESS)
            pods = self.fleet.things["Pod"]
            took = time.perf_counter() - began
            say(f"{self.name}: {took:.0f} s: {len(pods)} pods, {len(self.fleet.unsettled)} objects not settled")

    def _remember(self, daemon: Daemon) -> None:
        self.peak = max(self.peak, memory(daemon.pid)[1])

    @staticmethod
    def _rate(spent: Cost, seconds: float) -> Row:
        return {"writes": spent.writes, "cpu_share": spent.cpu / seconds, "polls_per_second": spent.polls / seconds}

    def _row(self, what: str, **figures: Any) -> None:
        rounded = {name: round(one, 4) if isinstance(one, float) else one for name, one in figures.items()}
        self.rows.append({"fleet": self.name, "what": what, **rounded})
        say(f"{self.name}: {what}: {rounded}")

    def work(self, figure: str) -> float:
        """A figure of all kinds of change together."""
        return sum(row[figure] for row in self.rows if row["what"] in CHANGES)


def quantile(values: list[float] | tuple[float, ...], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _spent(spent: Cost, count: int = 1) -> Row:
    return {
        "calls": spent.calls / count,
        "writes": spent.writes / count,
        "turns": spent.turns / count,
        "planning_ms": 1000 * spent.planning / count,
        "cpu_s": spent.cpu / count,
    }


async def _timed(work: Awaitable[None]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _until(holds: Callable[[], Awaitable[bool]], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)
