"""One scaling decision: from what is declared, asked, promised and remembered to a number of replicas, with reasons.

In this order: the signal wishes; the forecast and windows about to open raise the wish; idleness may lower it to none,
and a request at zero wakes it at once; wishes must last; bounds hold always. Missing figures never take a replica away:
nothing known means that the number stays, something missing that it does not fall.
"""

from dataclasses import replace

from sheaf_crds.autoscaling import AutoscalingPolicySpec

from sheaf_operator.planning.autoscaling.bounds import Limits, floor_ahead, limits, next_change
from sheaf_operator.planning.autoscaling.correction import corrected
from sheaf_operator.planning.autoscaling.facts import Demand, Facts, Reason
from sheaf_operator.planning.autoscaling.memory import Decision, Memory
from sheaf_operator.planning.autoscaling.season import DAY, TEN_MINUTES, WEEK, expected
from sheaf_operator.planning.autoscaling.signals import RATE_S, Scene, Wish, replicas_for, wish
from sheaf_operator.planning.autoscaling.steady import Move, settle, window_s

IDLE_RATE = 0.01
LOOK_AGAIN_S = 5.0


def decide(policy: AutoscalingPolicySpec, facts: Facts, demand: Demand | None, now: float, memory: Memory) -> Decision:
    """How many replicas there should be.

    Args:
        policy: the AutoscalingPolicy's spec.
        facts: what else is known of the Model.
        demand: what is asked of it; None: nobody knows.
        now: Unix seconds.
        memory: what the last decision left.
    """
    bounds = limits(policy, facts, now)
    current = facts.declared if memory.replicas is None else memory.replicas
    if demand is None:
        return _held(policy, bounds, current, memory, now)
    lengths = memory.lengths.with_work(demand.work, now)
    demand = replace(demand, work=lengths.of(demand.work))
    memory = _seen(policy, facts, demand, now, replace(memory, lengths=lengths))
    asleep = _sleeps(policy, facts, bounds, demand, memory, current, now)
    if asleep is not None:
        return _concluded(policy, memory, asleep.replicas, (asleep.reason,), current, now)
    return _awake(policy, facts, demand, now, memory, bounds, current)


def _held(policy: AutoscalingPolicySpec, bounds: Limits, current: int, memory: Memory, now: float) -> Decision:
    """Nothing is known: the number stays, within the bounds; what sleeps sleeps on."""
    sleeping = current == 0 and policy.scale_to_zero is not None
    number = 0 if sleeping else bounds.clamp(current)
    reason = Reason("DemandUnknown", f"no gateway says what is asked; {number} stay")
    return _concluded(policy, memory, number, (reason,), current, now)


def _seen(policy: AutoscalingPolicySpec, facts: Facts, demand: Demand, now: float, memory: Memory) -> Memory:
    history = memory.history.with_demand(demand, now)
    rate = history.rate(now - RATE_S, now) or 0.0
    idle_since = _idle_since(demand, now, memory)
    long_rate = history.rate(now - TEN_MINUTES, now)
    season = memory.season.with_rate(long_rate or 0.0, now) if policy.forecast is not None else memory.season
    calm_since = memory.calm_since if facts.ready == memory.replicas else now
    return replace(
        memory,
        history=history,
        season=season,
        calm_since=calm_since,
        correction=corrected(memory.correction, facts, demand, rate, calm_since, now),
        idle_since=idle_since,
        busy_at=now if idle_since is None else memory.busy_at,
    )


def _idle_since(demand: Demand, now: float, memory: Memory) -> float | None:
    """Since when nothing is asked, as gateways remember it, so that a restart forgets nothing; None: something is."""
    if demand.present or not demand.complete:
        return None
    if demand.quiet_s is not None:
        return max(memory.busy_at, now - demand.quiet_s)
    if demand.rate >= IDLE_RATE:
        return None
    return now if memory.idle_since is None else memory.idle_since


def _sleeps(
    policy: AutoscalingPolicySpec,
    facts: Facts,
    bounds: Limits,
    demand: Demand,
    memory: Memory,
    current: int,
    now: float,
) -> Wish | None:
    """A wish for no replica, where nothing was asked for long, or nothing is asked while it sleeps."""
    rule = policy.scale_to_zero
    floor = bounds.low if rule is None else max(facts.low, _floor(policy, facts, bounds, now))
    if demand.present or floor:
        return None
    if current == 0:
        return Wish(0, Reason("Asleep", "nothing is asked"))
    if rule is None or memory.idle_since is None or now - memory.idle_since < rule.after:
        return None
    return Wish(0, Reason("Idle", f"nothing was asked for {now - memory.idle_since:.0f} s"))


def _floor(policy: AutoscalingPolicySpec, facts: Facts, bounds: Limits, now: float) -> int:
    """What windows ask for, now or by the time a replica is up; the policy's own floor does not keep it awake."""
    opened = bounds.low if bounds.windows else 0
    return max(opened, floor_ahead(policy, now, facts.cold_start_s))


def _awake(
    policy: AutoscalingPolicySpec,
    facts: Facts,
    demand: Demand,
    now: float,
    memory: Memory,
    bounds: Limits,
    current: int,
) -> Decision:
    scene = Scene(policy, facts, demand, memory.history, memory.correction, current, bounds.high + 1, now)
    wanted = _raised(scene, memory, bounds, wish(scene))
    if current == 0:
        number = bounds.clamp(max(1, wanted.replicas))
        return _concluded(policy, memory, number, (_why_awake(demand, number), wanted.reason), current, now)
    number = max(1, bounds.clamp(wanted.replicas))
    wishes = memory.wishes.with_wish(number, window_s(policy), now)
    move = settle(policy, wishes, current, memory.changed_at, now)
    reasons = (wanted.reason, *_told(move, bounds, wanted, demand))
    after = max(move.replicas, 0 if demand.complete else current)
    return _concluded(policy, replace(memory, wishes=wishes), bounds.clamp(after), reasons, current, now)


def _why_awake(demand: Demand, number: int) -> Reason:
    if demand.present:
        return Reason("Woken", f"{demand.present} requests wait for a first replica")
    return Reason("Bounded", f"at least {number} shall be there")


def _raised(scene: Scene, memory: Memory, bounds: Limits, wanted: Wish) -> Wish:
    """The highest of the signal's wish, the forecast's, and that of a window about to open."""
    wishes = [wanted]
    ahead = floor_ahead(scene.policy, scene.now, scene.facts.cold_start_s)
    if ahead > bounds.low:
        wishes.append(Wish(ahead, Reason("Schedule", f"a window that opens soon asks for {ahead}")))
    usual = _usual(scene, memory)
    return max([*wishes, *([usual] if usual else [])], key=lambda one: one.replicas)


def _usual(scene: Scene, memory: Memory) -> Wish | None:
    if scene.policy.forecast is None:
        return None
    rate = memory.history.rate(scene.now - TEN_MINUTES, scene.now)
    backs = DAY if scene.policy.forecast.history == "Day" else WEEK
    found = expected(memory.season, rate, scene.now, scene.facts.cold_start_s, backs)
    if found is None:
        return None
    count = replicas_for(scene, found[0]) or _proportion(scene, found[0], rate)
    text = f"{found[0]:.2f} requests/s are usual by now and soon (trend {found[1]:.2f})"
    return Wish(min(count, scene.most), Reason("Forecast", text))


def _proportion(scene: Scene, usual: float, rate: float | None) -> int:
    """Replicas in proportion to the arrival rate, where the timing of a replica is not known."""
    return round(scene.current * usual / rate) if rate else 0


def _told(move: Move, bounds: Limits, wanted: Wish, demand: Demand) -> list[Reason]:
    told = []
    if bounds.clamp(wanted.replicas) != wanted.replicas:
        told.append(Reason("Bounded", f"held between {bounds.low} and {bounds.high}"))
    if bounds.windows:
        told.append(Reason("Schedule", f"open: {', '.join(bounds.windows)}"))
    if bounds.strange:
        told.append(Reason("UnknownTimeZone", f"read as UTC: {', '.join(bounds.strange)}"))
    if move.stepped:
        told.append(Reason("Stepped", "no more are moved at once"))
    if not demand.complete:
        told.append(Reason("DemandPartial", "not every gateway answers, so no replica goes"))
    return told


def _concluded(
    policy: AutoscalingPolicySpec, memory: Memory, number: int, reasons: tuple[Reason, ...], before: int, now: float
) -> Decision:
    after = memory.decided(number, reasons, before, now)
    return Decision(number, reasons, after, _wake_at(policy, after, now))


def _wake_at(policy: AutoscalingPolicySpec, memory: Memory, now: float) -> float:
    """When to decide again at the latest: soon, as demand is looked at all the time."""
    times = [now + LOOK_AGAIN_S]
    if (edge := next_change(policy, now)) is not None:
        times.append(edge)
    if policy.scale_to_zero is not None and memory.idle_since is not None:
        times.append(max(now, memory.idle_since + policy.scale_to_zero.after))
    return min(time for time in times if time > now)
