"""The policies that Sheaf's is measured against: SkyServe's SpotHedge as published, all on demand, spot alone.

SpotHedge: Mao et al., "SkyServe: Serving AI Models across Regions and Clouds with Spot Instances", EuroSys 2025, and
the open source (sky/serve/spot_placer.py, sky/serve/autoscalers.py):

- zones are in one of two sets, active (Z_A) and preempted (Z_P). A loss, or a launch that fails, moves its zone to Z_P;
  a replica that becomes ready moves its zone to Z_A; with fewer than two zones left in Z_A all of Z_P moves back;
- the next launch goes to the cheapest zone of Z_A that holds none of our replicas, else to the cheapest of Z_A;
- spot replicas launched or ready are kept at N_tar + N_extra - base;
- on-demand replicas are kept at base + min(N_tar - base, N_tar + N_extra - base - ready spot), so they cover what is
  not ready, and go as spot becomes ready.

Among zones of one price the one that failed longest ago is taken, which is the kindest reading: the source takes the
first in its list, and so may never leave the first two.
"""

from __future__ import annotations

from collections.abc import Sequence

from sheaf.simulator.spot.fluid import Pool, Replica


class Placer:
    """SkyServe's dynamic placer.

    Attributes:
        active: Z_A, in the order of the zones.
        preempted: Z_P.
    """

    def __init__(self, zones: Sequence[str], prices: Sequence[float]) -> None:
        self.active = list(zones)
        self.preempted: list[str] = []
        self._prices = dict(zip(zones, prices, strict=True))

    def next(self, used: Sequence[str]) -> str:
        """The zone of the next launch, given those that hold replicas of ours."""
        fresh = [zone for zone in self.active if zone not in used]
        return min(fresh or self.active, key=lambda zone: self._prices[zone])

    def failed(self, zone: str) -> None:
        """A replica was lost there, or a launch failed."""
        if zone in self.active:
            self.active.remove(zone)
            self.preempted.append(zone)
        if len(self.active) < 2:
            self.active, self.preempted = self.active + self.preempted, []

    def served(self, zone: str) -> None:
        """A replica is ready there."""
        if zone in self.preempted:
            self.preempted.remove(zone)
            self.active.append(zone)


def on_demand_wanted(target: int, extra: int, base: int, ready_spot: int, *, dynamic: bool = True) -> int:
    """On-demand replicas by SpotHedge."""
    gap = max(0, target - base + extra - ready_spot) if dynamic else 0
    return base + min(target - base, gap)


class SkyServe:
    """SpotHedge over a pool.

    Args:
        extra: N_extra, spot replicas beyond the target.
        base: replicas always on demand.
        dynamic: whether on-demand replicas cover for spot.
    """

    def __init__(self, extra: int = 1, base: int = 0, *, dynamic: bool = True) -> None:
        self.name = f"skyserve-{extra}"
        self.keeps_streams = False
        self._extra, self._base, self._dynamic = extra, base, dynamic
        self._placer: Placer | None = None
        self._known: set[int] = set()

    def act(self, pool: Pool, wanted: int) -> float | None:
        """Launch what is missing, end what is too many; launches that found nothing have failed by now."""
        placer = self._placer or self._place(pool)
        self._hear(pool, placer)
        spot = [one for one in pool.replicas.values() if one.spot]
        base = min(self._base, wanted)
        target = wanted - base + self._extra
        for _ in range(target - len(spot)):
            spot.append(pool.launch(placer.next([one.zone for one in spot])))
        for one in sorted(spot, key=_expendable)[: max(0, len(spot) - target)]:
            pool.end(one)
        ready = sum(one.ready for one in pool.replicas.values() if one.spot)
        self._cover(pool, on_demand_wanted(wanted, self._extra, base, ready, dynamic=self._dynamic))
        waiting = [one.created for one in pool.replicas.values() if one.granted is None]
        return min(waiting) + pool.outlook.patience if waiting else None

    def taken(self, pool: Pool, replica: Replica) -> None:
        """The market took one."""
        (self._placer or self._place(pool)).failed(replica.zone)

    def _place(self, pool: Pool) -> Placer:
        zones = pool.outlook.zones
        self._placer = Placer(zones, [pool.outlook.spot[zone] for zone in zones])
        return self._placer

    def _hear(self, pool: Pool, placer: Placer) -> None:
        for one in list(pool.replicas.values()):
            if one.ready and one.spot and one.number not in self._known:
                self._known.add(one.number)
                placer.served(one.zone)
            if one.granted is None and pool.now >= one.created + pool.outlook.patience:
                pool.end(one)
                placer.failed(one.zone)

    def _cover(self, pool: Pool, count: int) -> None:
        there = sorted((one for one in pool.replicas.values() if not one.spot), key=_expendable)
        for _ in range(count - len(there)):
            pool.launch(None)
        for one in there[: max(0, len(there) - count)]:
            pool.end(one)


class PureSpot(SkyServe):
    """As many spot replicas as are wanted, placed as SpotHedge does; nothing covers for them."""

    def __init__(self) -> None:
        super().__init__(extra=0, dynamic=False)
        self.name = "pure-spot"


class AllOnDemand:
    """As many replicas as are wanted, all on demand."""

    name = "on-demand"
    keeps_streams = True

    def act(self, pool: Pool, wanted: int) -> float | None:
        """As many as are wanted."""
        there = sorted(pool.replicas.values(), key=_expendable)
        for _ in range(wanted - len(there)):
            pool.launch(None)
        for one in there[: max(0, len(there) - wanted)]:
            pool.end(one)
        return None

    def taken(self, pool: Pool, replica: Replica) -> None:
        """Never."""


def _expendable(replica: Replica) -> tuple[bool, bool, int]:
    """Those that do not serve first, then the youngest."""
    return replica.ready, replica.granted is not None, -replica.number
