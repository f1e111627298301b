"""Between which numbers a Model may be now: its own bounds, those of its policy, and the windows that are open.

An open window's minReplicas and maxReplicas take the place of the policy's; of several the highest floor and the lowest
ceiling count. The Model's own ceiling is the hardest, then its floor. A window belongs to the day on which it opens, in
its own time zone: one from 22:00 to 06:00 on Fri is open on Saturday morning, one from 22:00 to 24:00 is not. Summer
time is the time zone's own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from sheaf_crds.autoscaling import AutoscalingPolicySpec, Schedule

from sheaf_operator.planning.autoscaling.facts import Facts

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
UNBOUNDED = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds now; `windows` are the names of those open, `strange` of those whose time zone nobody knows."""

    low: int
    high: int
    windows: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()

    def clamp(self, replicas: int) -> int:
        """The nearest number within."""
        return max(self.low, min(replicas, self.high))


def limits(policy: AutoscalingPolicySpec, facts: Facts, now: float) -> Limits:
    """The bounds at `now`, Unix seconds."""
    opened = [window for window in policy.schedules if _open(window, now)]
    floors = [window.min_replicas for window in opened if window.min_replicas is not None]
    ceilings = [window.max_replicas for window in opened if window.max_replicas is not None]
    low = max(facts.low, max(floors, default=policy.min_replicas))
    high = min(ceilings, default=policy.max_replicas)
    high = high if facts.high is None else min(high, facts.high)
    names = tuple(window.name for window in opened)
    return Limits(min(low, high), high, names, tuple(window.name for window in strange(policy)))


def strange(policy: AutoscalingPolicySpec) -> list[Schedule]:
    """The windows whose time zone nobody knows; they are read as UTC."""
    return [window for window in policy.schedules if _zone(window.time_zone) is None]


def next_change(policy: AutoscalingPolicySpec, now: float) -> float | None:
    """When a window opens or closes next, Unix seconds."""
    times = (edge for window in policy.schedules for edge in _edges(window, now))
    return min((time for time in times if time > now), default=None)


def floor_ahead(policy: AutoscalingPolicySpec, now: float, ahead_s: float) -> int:
    """The highest floor of the windows that open within so many seconds: replicas take that long to start."""
    if ahead_s <= 0.0:
        return 0
    coming = (window for window in policy.schedules if _opens(window, now, now + ahead_s))
    return max((window.min_replicas or 0 for window in coming), default=0)


def floor(policy: AutoscalingPolicySpec, facts: Facts, now: float) -> int:
    """The highest floor now, or of a window that opens by the time a replica is up."""
    bounds = limits(policy, facts, now)
    return max(bounds.low, min(bounds.high, floor_ahead(policy, now, facts.cold_start_s)))


def _opens(window: Schedule, now: float, until: float) -> bool:
    """Whether it is open at some time from then on, however short."""
    edges = (edge for edge in _edges(window, now) if now < edge < until)
    return any(_open(window, time) for time in (until, *edges))


def _open(window: Schedule, now: float) -> bool:
    here = datetime.fromtimestamp(now, _zone(window.time_zone) or UTC)
    time = f"{here.hour:02}:{here.minute:02}"
    if window.start < window.end:
        return window.start <= time < window.end and _on(window, here)
    if time >= window.start:
        return _on(window, here)
    return time < window.end and _on(window, here - timedelta(days=1))


def _on(window: Schedule, day: datetime) -> bool:
    return not window.days or DAYS[day.weekday()] in window.days


def _edges(window: Schedule, now: float) -> Iterator[float]:
    zone = _zone(window.time_zone) or UTC
    today = datetime.fromtimestamp(now, zone)
    for text in (window.start, window.end):
        yield from _moments(today, text, zone)


def _moments(today: datetime, text: str, zone: tzinfo) -> Iterable[float]:
    more, hour, minute = int(text[:2]) // 24, int(text[:2]) % 24, int(text[3:])
    days = (today.date() + timedelta(days=ahead + more) for ahead in range(-1, 3))
    return (datetime(d.year, d.month, d.day, hour, minute, tzinfo=zone).timestamp() for d in days)


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        return None
