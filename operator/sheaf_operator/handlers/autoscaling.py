"""The loop that scales: gateways are asked every few seconds, and what follows from it is noted in the fleet's index.

Only the process that may act does so; one that begins to act begins with what statuses remember. While a Model sleeps
at zero it looks more often, so that a held request waits for little more than the start. Deciding takes at most a fifth
of the time, however many Models there are.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sheaf_operator.cluster.gateways import Gateways
from sheaf_operator.planning.autoscaling import Scaler
from sheaf_operator.planning.autoscaling.scaler import COLD_START_S, SpeedOf, Standing
from sheaf_operator.planning.index import FleetIndex, Key

PERIOD = 2.0
PERIOD_ASLEEP = 0.5
SHARE_OF_TIME = 5.0
FIGURES = ("running", "waiting", "held", "rate")

_log = structlog.get_logger("sheaf.operator.autoscaling")


@dataclass
class Autoscaling:
    """One installation's.

    Attributes:
        index: where decisions are noted.
        gateways: who is asked.
        speed_of: how fast a replica of a Model is.
        clock: Unix seconds.
        ticks: seconds that only grow.
        may_act: whether this process is the one that writes now.
        mark: told the keys that have to be planned again.
        cold_start_s: what a start is taken for until pods have shown it.
    """

    index: FleetIndex
    gateways: Gateways
    speed_of: SpeedOf
    clock: Callable[[], float]
    ticks: Callable[[], float]
    may_act: Callable[[], bool]
    mark: Callable[[Collection[Key]], None]
    cold_start_s: float = COLD_START_S

    def __post_init__(self) -> None:
        self.scaler: Scaler | None = None
        self._deciding = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            if not self.may_act():
                self.scaler = None
            elif self.index.scaled_models() or self.index.slos() or self.scaler is not None:
                await self._guarded()
            await asyncio.sleep(max(self._period(), SHARE_OF_TIME * self._deciding))

    async def look(self) -> None:
        """Ask and decide once."""
        reports = await self.gateways.ask()
        if not self.may_act():
            return
        if self.scaler is None:
            self.scaler = Scaler(self.index, self.speed_of, self.cold_start_s)
        began = self.ticks()
        for keys in self.scaler.looks(reports, self.clock()):
            self.mark(keys)
            await asyncio.sleep(0)
        self._deciding = self.ticks() - began

    def standings(self) -> list[Standing]:
        """What metrics show."""
        return list(self.scaler.standings()) if self.scaler is not None else []

    def silent(self) -> int:
        """Gateways without whose word no replica goes; 0 while others act."""
        return self.gateways.silent() if self.scaler is not None else 0

    async def _guarded(self) -> None:
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001 - a surprise must not end scaling for good
            _log.error("autoscaling failed; numbers stay", error=f"{type(error).__name__}: {error}"[:500])

    def _period(self) -> float:
        asleep = any(not standing.replicas for standing in self.standings())
        return PERIOD_ASLEEP if asleep else PERIOD


class ScalingCollector(Collector):
    """Gauges by Model, for dashboards and for those who scale with KEDA or a HorizontalPodAutoscaler.

    The label is bounded by the declared Models that have an AutoscalingPolicy.
    """

    def __init__(
        self, standings: Callable[[], Iterable[Standing]], silent: Callable[[], int], registry: CollectorRegistry
    ) -> None:
        self._standings, self._silent = standings, silent
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: what there is depends on what is declared."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The numbers decided, and the demand behind them where it is known."""
        standings = list(self._standings())
        desired = GaugeMetricFamily("sheaf_desired_replicas", "Replicas that autoscaling decided.", labels=["model"])
        known = GaugeMetricFamily("sheaf_demand_known", "1 while gateways say what is asked.", labels=["model"])
        demand = GaugeMetricFamily(
            "sheaf_demand", "Requests running, waiting and held, and arrivals a second.", labels=["model", "figure"]
        )
        for standing in standings:
            desired.add_metric([standing.model], standing.replicas)
            known.add_metric([standing.model], float(standing.demand is not None and standing.demand.complete))
            for figure in FIGURES if standing.demand is not None else ():
                demand.add_metric([standing.model, figure], float(getattr(standing.demand, figure)))
        said = "Gateways that do not say what is asked; while there are any, no replica goes."
        return desired, known, demand, GaugeMetricFamily("sheaf_gateways_silent", said, value=self._silent())
