"""Spot or on demand, and in which zone: the expected cost of each choice.

The frame is SpotHedge (Mao et al., SkyServe, EuroSys 2025): zones are locations with a memory, spot pods beyond those
wanted hedge against losses, on-demand pods cover the gap while spot is not ready, and a floor is always on demand. What
SpotHedge fixes by count is weighed here by what it costs in the long run (renewal reward):

    cost of a zone an hour = price + losses an hour * (price * cold start + shortfall while the replacement starts
                             + price on demand * expected search for capacity)

A zone that costs more than on-demand capacity, though insured by a spare, is not used. Shortfall is the load, in
replicas' worth, that is expected to find no replica: over the loads of the last hour, and over what the market may take
while replacements start. A spare is held, and on-demand stands in, where the shortfall that the pod prevents costs more
than the pod; what is there stays down to half of that. On-demand stands in for pods that have no node, not for those
that are starting, because it would start no sooner; and stays until they serve. Where prices are not known, zones go by
counts (fewest of our pods, then fewest losses), spares are those declared, and stand-ins those of pods that have
looked for a node in vain.

Whatever the load, replicas that were promised (a floor, and one at least) are covered on demand, and so are those for
which no spot pod is wanted because none is worth its price. While loads are still being learnt no spare is begun, and
spares and stand-ins that are there stay: a new operator must not make a fleet anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sheaf_operator.planning.market.ages import exposure, hazard
from sheaf_operator.planning.market.estimates import LEAST_CHANCE, PRIOR_HOURS, PRIOR_LOSSES, Estimate, estimate
from sheaf_operator.planning.market.memory import ZoneRecord
from sheaf_operator.planning.market.shortfall import Group, expected, unserved
from sheaf_operator.planning.market.values import HOUR, Ask, Decision, Held, Move

MOST_SPARES = 3
KEEP = 0.5
USUAL_LOSSES = PRIOR_LOSSES / PRIOR_HOURS
HOPEFUL = 0.5


@dataclass(frozen=True, slots=True)
class _View:
    """The market as this decision sees it: estimates by zone, and our pods in each."""

    ask: Ask
    estimates: dict[str, Estimate]
    held: dict[str, int]
    cheapest: float
    beyond: tuple[float, ...]
    ages: dict[str, float]

    def rate(self, zone: str, more: int = 0, spares: int = 0) -> float:
        """Expected money an hour of one pod more there, beside `more` others that are to come."""
        return self.bare(zone) + self.risk(zone, 1 + self.held.get(zone, 0) + more - spares)

    def bare(self, zone: str) -> float:
        """Expected money an hour of a pod there, without what its losses do to requests."""
        terms, expected = self.ask.terms, self.estimates[zone]
        price = terms.price(zone)
        search = (1.0 - expected.chance) / expected.chance * terms.patience
        lost = price * terms.cold_start + (terms.on_demand or 0.0) * search
        return price + expected.losses_per_hour * lost / HOUR

    def risk(self, zone: str, missing: int) -> float:
        """Expected money an hour of the shortfall while so many pods, lost there, are replaced."""
        terms = self.ask.terms
        harm = self.harm(missing) * terms.shortfall * (terms.on_demand or 0.0)
        return self.estimates[zone].losses_per_hour * harm * terms.cold_start / HOUR

    def insured(self, zone: str) -> float:
        """The risk of a pod there, or its share in a spare and what is left of the risk while that one is replaced."""
        terms, needed, risk = self.ask.terms, max(1, self.ask.needed), self.risk(zone, 1)
        share = self.cheapest / needed
        again = min(1.0, needed * self.estimates[zone].losses_per_hour * terms.cold_start / HOUR)
        return min(risk, share + again * risk)

    def harm(self, missing: int) -> float:
        """Replicas' worth of requests whose promise is broken while so many pods are missing."""
        return self.beyond[min(max(0, self.ask.replicas - missing), len(self.beyond) - 1)]

    def away(self, zone: str) -> float:
        """For what share of the time a pod there is lost and not replaced yet, as old as the oldest of ours is."""
        known = self.estimates.get(zone)
        rate = hazard(known.losses_per_hour if known else USUAL_LOSSES, self.ages.get(zone, 0.0))
        return min(1.0, rate * self.ask.terms.cold_start / HOUR)

    def cost(self, firm: int, zones: Sequence[str]) -> float:
        """Money an hour that the expected shortfall costs, with `firm` pods on demand and one on spot in each zone that
        is named, as often as it is."""
        groups = [Group(zones.count(zone), self.away(zone)) for zone in dict.fromkeys(zones)]
        return expected(self.beyond, firm, groups) * self.ask.terms.shortfall * (self.ask.terms.on_demand or 0.0)


def decide(ask: Ask) -> Decision:
    """How many pods of each sort there should be, and where those go that are to be started."""
    if ask.policy == "Never" or not ask.replicas:
        return Decision(ask.replicas, 0)
    view = _view(ask)
    spot = [pod for pod in ask.pods if pod.spot]
    spares = _spares(view, spot)
    zones = _zones(view)
    target = _target(view, zones, spot, spares)
    missing = max(0, target - len(spot))
    places = _pick(view, zones, missing, spares) if zones else ("",) * missing
    stand_ins = _stand_ins(view, spot, places, max(0, ask.needed - target))
    reasons = _reasons(view, spares, stand_ins, places)
    return Decision(ask.base + stand_ins, target, stand_ins, spares, places, _moves(view, zones, spot), reasons)


def waiting_in_vain(pod: Held, ask: Ask) -> bool:
    """Whether a pod has looked for a node for as long as anyone should."""
    return pod.stage == "Waiting" and ask.now >= pod.since + ask.terms.patience


def _view(ask: Ask) -> _View:
    hours: dict[str, float] = {}
    held: dict[str, int] = {}
    ages: dict[str, float] = {}
    for pod in ask.pods:
        if pod.spot and pod.stage != "Waiting":
            ages[pod.zone] = max(ages.get(pod.zone, 0.0), (ask.now - pod.since) / HOUR)
            held[pod.zone] = held.get(pod.zone, 0) + 1
            hours[pod.zone] = hours.get(pod.zone, 0.0) + exposure((ask.now - pod.since) / HOUR)
    vain = {pod.zone for pod in ask.pods if pod.spot and waiting_in_vain(pod, ask)}
    estimates = {
        zone: Estimate(found.losses_per_hour, LEAST_CHANCE) if zone in vain else found
        for zone in ask.terms.zones
        for found in (_estimate(ask, zone, hours.get(zone, 0.0), held.get(zone, 0)),)
    }
    cheapest = min(map(ask.terms.price, estimates), default=0.0)
    return _View(ask, estimates, held, cheapest, unserved(ask.busy, ask.replicas + MOST_SPARES), ages)


def _estimate(ask: Ask, zone: str, hours: float, live: int) -> Estimate:
    return estimate(ask.records.get(zone, ZoneRecord(zone)), hours, live, ask.now)


def _spares(view: _View, spot: Sequence[Held]) -> int:
    """Pods beyond those wanted: as many as declared, else as many as cost less than the shortfall that they prevent."""
    ask = view.ask
    if ask.spare is not None:
        return min(ask.spare, ask.needed)
    if not ask.terms.priced or not view.estimates:
        return 0
    if ask.learning:
        return min(max(0, len(spot) - ask.needed), MOST_SPARES, ask.needed)
    zones = _crowd(view, spot, ask.needed + MOST_SPARES)
    spares = 0
    for count in range(1, min(MOST_SPARES, ask.needed) + 1):
        more = ask.needed + count
        value = view.cost(ask.base, zones[: more - 1]) - view.cost(ask.base, zones[:more])
        if value < view.cheapest * (KEEP if len(spot) >= more else 1.0):
            break
        spares = count
    return spares


def _crowd(view: _View, spot: Sequence[Held], count: int) -> list[str]:
    """Zones of so many pods: those that are there, the safest first, then more as they would be placed."""
    found = sorted((pod.zone for pod in spot if pod.stage != "Waiting"), key=lambda zone: (view.away(zone), zone))
    while len(found) < count:
        found.append(min(view.estimates, key=lambda zone: (found.count(zone), view.away(zone))))
    return found


def _target(view: _View, zones: Sequence[str], spot: Sequence[Held], spares: int) -> int:
    """Pods on spot: those wanted and the spares; where no zone is worth its price, no more than there are."""
    ask = view.ask
    target = ask.needed + spares
    hopeless = not zones and len(view.estimates) > 1
    return min(target, len(spot)) if hopeless else target


def _zones(view: _View) -> list[str]:
    """Zones that may be used: with prices, those that cost less than on demand, be it with a share in a spare."""
    ask = view.ask
    if len(view.estimates) < 2:
        return []
    if not ask.terms.priced or ask.policy == "Required":
        return list(view.estimates)
    firm = ask.terms.on_demand or 0.0
    return [zone for zone in view.estimates if view.bare(zone) + view.insured(zone) < firm]


def _pick(view: _View, zones: Sequence[str], count: int, spares: int) -> tuple[str, ...]:
    """Zones for so many pods more, one after the other, each the best beside those before."""
    more = dict.fromkeys(zones, 0)
    for pod in view.ask.pods:
        if pod.spot and pod.stage == "Waiting" and pod.zone in more:
            more[pod.zone] += 1
    picked: list[str] = []
    for _ in range(count):
        best = min(zones, key=lambda zone: _order(view, zone, more[zone], spares))
        more[best] += 1
        picked.append(best)
    return tuple(picked)


def _order(view: _View, zone: str, more: int, spares: int) -> tuple[float, ...]:
    found = view.estimates[zone]
    if view.ask.terms.priced:
        return (view.rate(zone, more, spares),)
    return found.chance < HOPEFUL, view.held.get(zone, 0) + more, found.losses_per_hour


def _stand_ins(view: _View, spot: Sequence[Held], places: Sequence[str], left: int) -> int:
    """On-demand pods for spot that has no node, and for replicas `left` to none; they stay until spot serves."""
    ask = view.ask
    if ask.policy == "Required":
        return 0
    target = max(ask.needed, len(spot) + len(places)) if ask.spare is None else ask.needed
    ready = [pod.zone for pod in spot if pod.stage == "Ready"]
    nodes = [pod.zone for pod in spot if pod.stage != "Waiting"]
    gap = max(0, target - len(ready))
    hopeful = [pod.zone for pod in spot if pod.stage == "Waiting" and not _hopeless(view, pod)]
    hopeful += [zone for zone in places if not zone or view.estimates[zone].chance >= HOPEFUL]
    there = sum(not pod.spot for pod in ask.pods) - ask.base
    uncovered = target - len(nodes) - len(hopeful)
    if not ask.terms.priced:
        return max(0, min(max(uncovered, there), gap))
    begun = _worth(view, [*nodes, *hopeful], uncovered, 1.0, left)
    kept = min(there, gap) if ask.learning else _worth(view, ready, min(there, gap), KEEP, left)
    return max(0, min(max(begun, kept), gap))


def _worth(view: _View, zones: Sequence[str], most: int, factor: float, left: int) -> int:
    """On-demand pods beside spot in these zones: those that are owed, and more that cost less than the shortfall that
    they prevent."""
    ask = view.ask
    price = (ask.terms.on_demand or 0.0) * factor
    count = max(0, min(most, max(left, ask.assured - ask.base - len(zones))))
    while count < most and view.cost(ask.base + count, zones) - view.cost(ask.base + count + 1, zones) >= price:
        count += 1
    return count


def _hopeless(view: _View, pod: Held) -> bool:
    """A pod without a node that has looked for long enough, or in a zone that is known to have no capacity."""
    found = view.estimates.get(pod.zone)
    empty = view.ask.terms.priced and found is not None and found.chance < HOPEFUL
    return empty or waiting_in_vain(pod, view.ask)


def _moves(view: _View, zones: Sequence[str], spot: Sequence[Held]) -> tuple[Move, ...]:
    """Pods that wait in vain, each with the best other zone."""
    vain = [pod for pod in spot if pod.zone and waiting_in_vain(pod, view.ask)]
    moves: list[Move] = []
    for pod in vain:
        others = [zone for zone in zones if zone != pod.zone]
        if others:
            zone = _pick(view, others, len(moves) + 1, 0)[-1]
            moves.append(Move(pod.name, zone, f"no spot capacity in {pod.zone}; {zone} is tried"))
    return tuple(moves)


def _reasons(view: _View, spares: int, stand_ins: int, places: Sequence[str]) -> tuple[str, ...]:
    said = [_zone_reason(view, zone) for zone in dict.fromkeys(places) if zone]
    if spares:
        said.append(f"{spares} spare on spot: losses are expected to cost more than they do")
    if stand_ins:
        said.append(f"{stand_ins} on demand while spot is not ready")
    return tuple(said)


def _zone_reason(view: _View, zone: str) -> str:
    found = view.estimates[zone]
    told = f"{zone}: {found.losses_per_hour:.2f} losses an hour and {found.chance:.0%} chance of capacity expected"
    return f"{told}, {view.rate(zone):.2f} an hour all in" if view.ask.terms.priced else told
