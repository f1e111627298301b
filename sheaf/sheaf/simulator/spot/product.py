"""Sheaf's own capacity policy over a pool: the operator's functions, unchanged."""

from __future__ import annotations

from sheaf_operator.planning.market import (
    SHORTFALL,
    Ask,
    Held,
    Sighting,
    Terms,
    ZoneRecord,
    decide,
    estimate,
    hazard,
    remember,
)
from sheaf_operator.planning.market.memory import Fate
from sheaf_operator.planning.market.values import Stage

from sheaf.simulator.spot.fluid import Pool, Replica

AGAIN_S = 300.0
LOADS_S = 3600.0


class Sheaf:
    """The operator's decision, carried out at once.

    Args:
        floor: replicas always on demand.
        spare: spot replicas beyond those wanted; None: as many as pay.
        shortfall: what an hour without a replica costs, in hours of one on demand.
    """

    def __init__(self, floor: int = 0, spare: int | None = None, shortfall: float = SHORTFALL) -> None:
        self.name = "sheaf"
        self.keeps_streams = True
        self.records: dict[str, ZoneRecord] = {}
        self._floor, self._spare, self._shortfall = floor, spare, shortfall
        self._terms: Terms | None = None

    def act(self, pool: Pool, wanted: int) -> float | None:
        """One decision; and again where a pod will have waited in vain, or ten minutes later while anything waits."""
        terms = self._terms or self._learn(pool)
        decision = decide(self._ask(pool, wanted, terms))
        for move in decision.moves:
            self._note(pool, pool.replicas[int(move.name)], "Refused")
            pool.launch(move.zone)
        for zone in decision.places:
            pool.launch(zone)
        self._trim(pool, decision.spot, spot=True)
        there = sum(not one.spot for one in pool.replicas.values())
        for _ in range(decision.on_demand - there):
            pool.launch(None)
        self._trim(pool, decision.on_demand, spot=False)
        waiting = [one.created for one in pool.replicas.values() if one.granted is None]
        due = [since + terms.patience for since in waiting if since + terms.patience > pool.now]
        return min([*due, pool.now + AGAIN_S])

    def taken(self, pool: Pool, replica: Replica) -> None:
        """The market took one."""
        self._note(pool, replica, "Lost")

    def _learn(self, pool: Pool) -> Terms:
        outlook = pool.outlook
        self._terms = Terms(
            zones=outlook.zones,
            on_demand=outlook.on_demand,
            spot_in=outlook.spot,
            cold_start=outlook.cold_start,
            shortfall=self._shortfall,
            headroom=1.0 - outlook.utilisation,
            patience=outlook.patience,
        )
        return self._terms

    def _ask(self, pool: Pool, wanted: int, terms: Terms) -> Ask:
        held = tuple(
            Held(str(one.number), one.spot, one.zone, _stage(one), _since(one)) for one in pool.replicas.values()
        )
        loads = pool.loads(LOADS_S)
        return Ask("Preferred", wanted, self._floor, self._spare, held, self.records, terms, pool.now, loads)

    def _trim(self, pool: Pool, count: int, *, spot: bool) -> None:
        """End what is too many: what does not serve, then where losses are likeliest, then the youngest."""
        there = [one for one in pool.replicas.values() if one.spot is spot]

        def order(one: Replica) -> tuple[bool, bool, float, int]:
            return one.ready, one.granted is not None, -self._risk(one, pool.now), -one.number

        for replica in sorted(there, key=order)[: max(0, len(there) - count)]:
            self._note(pool, replica, "Retired")

    def _risk(self, replica: Replica, now: float) -> float:
        if not replica.spot:
            return 0.0
        found = estimate(self.records.get(replica.zone, ZoneRecord(replica.zone)), 0.0, 0, now)
        return hazard(found.losses_per_hour, (now - _since(replica)) / 3600.0)

    def _note(self, pool: Pool, replica: Replica, fate: Fate) -> None:
        if replica.number in pool.replicas:
            pool.end(replica)
        if not replica.spot or (fate == "Retired" and replica.granted is None):
            return
        hours = (pool.now - (replica.granted or pool.now)) / 3600.0
        sighting = Sighting(str(replica.number), replica.zone, fate, hours, pool.now)
        self.records = remember(self.records, [sighting], frozenset())


def _since(replica: Replica) -> float:
    return replica.created if replica.granted is None else replica.granted


def _stage(replica: Replica) -> Stage:
    return "Ready" if replica.ready else "Waiting" if replica.granted is None else "Starting"
