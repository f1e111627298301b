"""What gateways say, kept at hand: each is asked, and the last answer of each stays until it is too old to count."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from sheaf_crds.slo import SLOWindow

from sheaf_operator.planning.autoscaling.facts import Demand
from sheaf_operator.planning.autoscaling.gather import FRESH_S, KEPT_S, Report, Reports
from sheaf_operator.planning.autoscaling.wire import read_demand, read_windows

DEMAND_PATH = "/sheaf/v1/demand"
WINDOWS_PATH = "/sheaf/v1/slos"
FIND_EVERY_S = 10.0
WINDOWS_EVERY_S = 15.0
AT_ONCE = 16

_log = structlog.get_logger("sheaf.operator.gateways")


class GatewayError(Exception):
    """A gateway did not answer as it should."""


Find = Callable[[], Awaitable[Mapping[str, str]]]
Fetch = Callable[[str], Awaitable[Any]]


class Gateways:
    """All gateways of an installation.

    Args:
        find: the URL of each gateway that there is, by a name that no other had; GatewayError where nobody knows.
        fetch: the JSON at a URL, with whatever opens it; GatewayError where there is none.
        clock: Unix seconds.
    """

    def __init__(self, find: Find, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._find, self._fetch, self._clock = find, fetch, clock
        self._urls: dict[str, str] = {}
        self._found_at = float("-inf")
        self._reports: dict[str, Report | None] = {}
        self._windows: dict[str, tuple[float, Mapping[str, tuple[SLOWindow, ...]]]] = {}
        self._silent: set[str] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def ask(self) -> Reports:
        """Ask every gateway; the answers so far, None for one that never gave any."""
        await self._look()
        await asyncio.gather(*(self._ask(name, url) for name, url in self._urls.items()))
        return dict(self._reports)

    def silent(self) -> int:
        """How many of them have said nothing lately: while there are any, no replica is taken away."""
        now = self._clock()
        return sum(report is None or now - report.at > FRESH_S for report in self._reports.values())

    async def _look(self) -> None:
        """Find out which gateways there are; where nobody knows, those of before are taken to be there still."""
        if self._clock() - self._found_at < FIND_EVERY_S:
            return
        try:
            self._urls = dict(await self._find())
        except GatewayError as error:
            self._said("", str(error))
            return
        self._found_at = self._clock()
        self._silent.discard("")
        self._reports = {name: self._reports.get(name) for name in self._urls} | self._missed()
        self._windows = {name: kept for name, kept in self._windows.items() if name in self._urls}

    def _missed(self) -> dict[str, Report | None]:
        """Gateways that were there a moment ago: what they had may be going on."""
        now, gone = self._clock(), set(self._reports) - set(self._urls)
        reports = {name: self._reports[name] for name in gone}
        return {name: report for name, report in reports.items() if report is not None and now - report.at <= KEPT_S}

    async def _ask(self, name: str, url: str) -> None:
        async with self._gate:
            try:
                demands = await self._demands(url)
                windows = await self._kept(name, url)
            except GatewayError as error:
                self._said(name, str(error))
                return
        self._silent.discard(name)
        self._reports[name] = Report(self._clock(), demands, windows)

    async def _demands(self, url: str) -> Mapping[str, Demand]:
        content = await self._fetch(f"{url}{DEMAND_PATH}")
        try:
            return read_demand(content)
        except ValueError as error:
            raise GatewayError(f"{url}{DEMAND_PATH} does not answer as a gateway of Sheaf's does") from error

    async def _kept(self, name: str, url: str) -> Mapping[str, tuple[SLOWindow, ...]]:
        at, windows = self._windows.get(name, (float("-inf"), {}))
        if self._clock() - at < WINDOWS_EVERY_S:
            return windows
        content = await self._fetch(f"{url}{WINDOWS_PATH}")
        try:
            windows = read_windows(content)
        except ValueError as error:
            raise GatewayError(f"{url}{WINDOWS_PATH} does not answer as a gateway of Sheaf's does") from error
        self._windows[name] = self._clock(), windows
        return windows

    def _said(self, name: str, trouble: str) -> None:
        """Say once that a gateway is silent, not every time."""
        if name not in self._silent:
            self._silent.add(name)
            _log.warning("what is asked is not known in full; no replica goes meanwhile", gateway=name, error=trouble)
