"""What a decision about capacity is made from, and what it says. Times are seconds, money is money an hour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sheaf_operator.planning.market.memory import ZoneRecord

HOUR = 3600.0
SHORTFALL = 350.0
ENOUGH_LOADS = 10

Policy = Literal["Never", "Preferred", "Required"]
Stage = Literal["Ready", "Starting", "Waiting"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What capacity costs here, how long things take, and what it costs to do without.

    Attributes:
        zones: where spot capacity may be; fewer than two leave the choice to whoever schedules.
        on_demand: price of a replica on demand; None: not known, and then nothing is weighed by price.
        spot: price of a replica on spot in zones that `spot_in` does not name.
        spot_in: price of a replica on spot by zone.
        cold_start: from a pod's creation until it serves.
        shortfall: what an hour without one replica costs, in hours of one on-demand replica.
        headroom: share of the replicas that can be missing before a promise is broken.
        patience: how long a pod may look for a node before there is no capacity for it.
    """

    zones: tuple[str, ...] = ()
    on_demand: float | None = None
    spot: float | None = None
    spot_in: Mapping[str, float] = field(default_factory=dict)
    cold_start: float = 180.0
    shortfall: float = SHORTFALL
    headroom: float = 0.0
    patience: float = 60.0

    @property
    def priced(self) -> bool:
        """Whether every price is known."""
        known = self.spot is not None or all(zone in self.spot_in for zone in self.zones)
        return self.on_demand is not None and known

    def price(self, zone: str) -> float:
        """Money an hour of a spot replica there; 0 where nobody knows."""
        return self.spot_in.get(zone, self.spot or 0.0)


@dataclass(frozen=True, slots=True)
class Held:
    """A pod that is there to stay. `zone` is "" where it may be any.

    `since`: when it found its node, or was made where it has none (Unix seconds).
    """

    name: str
    spot: bool
    zone: str
    stage: Stage
    since: float


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be decided.

    Attributes:
        policy: use of spot.
        replicas: how many should serve.
        floor: how many of them always on demand.
        spare: spot replicas beyond those wanted; None: as many as they are worth.
        pods: what is held.
        records: what is remembered of zones, by name.
        terms: the market.
        now: Unix seconds.
        loads: replicas that requests kept busy in each of the last minutes; fewer than ENOUGH_LOADS are not
            trusted yet. None: nobody will know.
        least: replicas that were promised whatever the load: declared, or the highest floor that holds.
    """

    policy: Policy
    replicas: int
    floor: int
    spare: int | None
    pods: tuple[Held, ...]
    records: Mapping[str, ZoneRecord]
    terms: Terms
    now: float
    loads: tuple[float, ...] | None = None
    least: int = 0

    @property
    def busy(self) -> tuple[float, ...]:
        """Loads, none above the replicas wanted now; where they are not known, all of those but the headroom."""
        if self.loads is None or self.learning:
            return (self.replicas * (1.0 - self.terms.headroom),)
        return tuple(min(load, self.replicas) for load in self.loads)

    @property
    def learning(self) -> bool:
        """Whether loads will be known, and are not yet: nothing is judged superfluous or worth a spare by then."""
        return self.loads is not None and len(self.loads) < ENOUGH_LOADS

    @property
    def assured(self) -> int:
        """Replicas that are covered whatever the load: those promised, and one at least."""
        return min(self.replicas, max(1, self.least))

    @property
    def base(self) -> int:
        """Replicas that are always on demand."""
        return 0 if self.policy == "Required" else min(self.floor, self.replicas)

    @property
    def needed(self) -> int:
        """Replicas that spot should carry."""
        return self.replicas - self.base


@dataclass(frozen=True, slots=True)
class Move:
    """A pod that waits in vain is tried in another zone."""

    name: str
    zone: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """How many pods of each sort, and where.

    Attributes:
        on_demand: pods on demand, stand-ins included.
        spot: pods on spot, spares included.
        stand_ins: on-demand pods that cover for spot that is not ready.
        spares: spot pods beyond the replicas wanted.
        places: zones of the spot pods that are to be started, "" for any; as many as are missing.
        moves: pods that wait in vain, with the zones to try next.
        reasons: why, for people.
    """

    on_demand: int
    spot: int
    stand_ins: int = 0
    spares: int = 0
    places: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    reasons: tuple[str, ...] = ()
