"""What each signal wishes for: a number of replicas, and why.

All signals keep still within a band: more replicas are wished for when the load needs more than there are, fewer when
even BAND more load would need fewer. So a load that does not change wishes for one number for ever, and one that swings
by less than the band moves nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sheaf_crds.autoscaling import AutoscalingPolicySpec

from sheaf_operator.planning.autoscaling.correction import Correction
from sheaf_operator.planning.autoscaling.facts import Demand, Facts, Reason
from sheaf_operator.planning.autoscaling.history import CELL_S, History, trend
from sheaf_operator.planning.autoscaling.queueing import forecast, needed

BAND = 0.05
CALM_S = 60.0
PANIC = 2.0
RATE_S = 120.0
TREND_WINDOWS_S = (120.0, 240.0)
YOUNG_S = 180.0
CLEARING_S = 60.0
USUAL_PRESENCE = 1.5
BURST_SIGMAS = 3.0
GATEWAY_WINDOW_S = 60.0
LONGEST_LOOK_AHEAD_S = 600.0
MOST_GROWTH = 0.5
LEAST_RESERVE, MOST_RESERVE = 0.05, 0.1
DEFAULT_PRESSURE = 0.8
DEFAULT_CONCURRENCY = 32.0


@dataclass(frozen=True, slots=True)
class Wish:
    """So many replicas, and why."""

    replicas: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a signal looks at; `most` is the highest number that may come out."""

    policy: AutoscalingPolicySpec
    facts: Facts
    demand: Demand
    history: History
    correction: Correction
    current: int
    most: int
    now: float


def wish(scene: Scene) -> Wish:
    """What the policy's signal asks for."""
    if scene.policy.signal == "Concurrency":
        return _concurrency(scene, scene.policy.target or DEFAULT_CONCURRENCY)
    if scene.policy.signal == "QueuePressure":
        return _pressure(scene, scene.policy.target or DEFAULT_PRESSURE)
    return _slo(scene)


def replicas_for(scene: Scene, rate: float) -> int:
    """The replicas that an arrival rate needs under the SLO; 0 where that cannot be said."""
    speed, work = scene.facts.speed, scene.demand.work
    if speed is None or work is None:
        return 0
    factor = 1.0 + reserve(scene.demand.hour_burn) + scene.correction.caution
    return needed(speed.slower(scene.correction.slowness), work, scene.facts.promise, rate * factor, scene.most)


def reserve(hour_burn: float | None) -> float:
    """Load kept free for what changes while a replica starts: more, the more of the hour's error budget is spent."""
    spent = 1.0 if hour_burn is None else min(1.0, hour_burn)
    return LEAST_RESERVE + (MOST_RESERVE - LEAST_RESERVE) * spent


def _within_band(need: Callable[[float], int], load: float, current: int) -> int:
    more = need(load)
    if more >= current:
        return more
    return min(current, need(load * (1.0 + BAND)))


def _concurrency(scene: Scene, target: float) -> Wish:
    load, how = _present(scene)
    count = _within_band(lambda some: math.ceil(some / target), load, scene.current)
    text = f"{load:.1f} requests {how} at {target:g} for each replica"
    return Wish(min(count, scene.most), Reason("Concurrency", text))


def _present(scene: Scene) -> tuple[float, str]:
    """Requests that are there: the mean of a while, or those of now where they are PANIC times as many."""
    seconds = _calm_s(scene.policy)
    calm = scene.history.present(scene.now - seconds, scene.now)
    here = float(scene.demand.present)
    if calm is None or here > PANIC * calm:
        return here, "at once"
    return calm, f"on average over {seconds:.0f} s"


def _calm_s(policy: AutoscalingPolicySpec) -> float:
    """How long the mean reaches back: CALM_S, less where a policy asks for quicker falls than that."""
    return min(CALM_S, max(CELL_S, policy.scale_down.stabilization))


def _pressure(scene: Scene, target: float) -> Wish:
    demand, ready = scene.demand, scene.facts.ready
    used = max(demand.kv_use, demand.running / demand.slots if demand.slots else 0.0)
    filled = used * ready * demand.present / demand.running if demand.running else float(demand.present > 0)
    count = _within_band(lambda some: math.ceil(some / target), filled, scene.current)
    text = (
        f"{used:.0%} of {ready} replicas used and {demand.waiting + demand.held} requests waiting "
        f"at {target:.0%} for each replica"
    )
    return Wish(min(count, scene.most), Reason("QueuePressure", text))


def _slo(scene: Scene) -> Wish:
    if scene.facts.speed is None or scene.demand.work is None:
        return _unknown(scene)
    rate, parts = _rate(scene)
    count = _within_band(lambda some: replicas_for(scene, some), rate, scene.current)
    if not scene.history.covers(YOUNG_S, scene.now):
        count = max(count, scene.current)
    work = scene.demand.work
    aim = "to keep the SLO" if scene.facts.promise else "to be at most 80 % busy (the Model has no SLO)"
    text = (
        f"{rate:.2f} requests/s ({', '.join(parts)}) of {work.uncached:.0f} new prompt and {work.output:.0f} output "
        f"tokens need {count} {aim}{_adjusted(scene.correction)}"
    )
    return Wish(min(count, scene.most), Reason("SLO", text))


def _unknown(scene: Scene) -> Wish:
    """Nothing was measured yet: what waits shows that more is needed than serve, nothing that less would do."""
    more = max(scene.current, scene.facts.ready + 1) if scene.demand.waiting else scene.current
    what = "the speed of a replica is" if scene.facts.speed is None else "lengths of requests are"
    return Wish(min(max(1, more), scene.most), Reason("SLO", f"{what} not known yet"))


def _rate(scene: Scene) -> tuple[float, list[str]]:
    """Arrivals to be ready for when a replica asked for now serves, and what they are made of."""
    demand, now = scene.demand, scene.now
    calm = scene.history.rate(now - RATE_S, now)
    calm = demand.rate if calm is None else calm
    rate, parts = calm, [f"{calm:.2f} arrive"]
    if demand.rate > calm + BURST_SIGMAS * math.sqrt(calm / GATEWAY_WINDOW_S):
        rate, parts = demand.rate, [f"{demand.rate:.2f} arrive in a burst"]
    growth = _growth(scene, calm)
    late = _overdue(scene, calm) / CLEARING_S
    parts += [f"{growth:.2f} more by the time a replica is up"] if growth else []
    parts += [f"{late:.2f} to clear those who wait"] if late else []
    return rate + growth + late, parts


def _growth(scene: Scene, calm: float) -> float:
    """What arrives more when a replica asked for now serves, while arrivals grow."""
    if scene.demand.rate <= calm:
        return 0.0
    ahead = min(scene.facts.cold_start_s, LONGEST_LOOK_AHEAD_S) + RATE_S / 2.0
    slope = max(trend(scene.history, scene.now, window) for window in TREND_WINDOWS_S)
    return min(MOST_GROWTH * calm, slope * ahead)


def _overdue(scene: Scene, rate: float) -> float:
    """Requests beyond those that would be there if nobody waited: in gateways, and in the engines' own queues."""
    speed, work, demand = scene.facts.speed, scene.demand.work, scene.demand
    waiting = float(demand.waiting + demand.held)
    enough = replicas_for(scene, rate)
    if speed is None or work is None or not enough:
        return waiting
    usual = forecast(speed.slower(scene.correction.slowness), work, rate, enough).running * enough
    return max(waiting, demand.present - USUAL_PRESENCE * usual - enough)


def _adjusted(correction: Correction) -> str:
    parts = []
    if abs(correction.slowness - 1.0) >= 0.05:
        parts.append(f"replicas measured {correction.slowness:.2f} times as slow as their profile")
    if correction.caution:
        parts.append(f"load taken {correction.caution:+.0%} by the measured attainment")
    return f"; {'; '.join(parts)}" if parts else ""
