"""Wishes are followed when they have lasted: stabilisation windows, steps, and the quiet in between.

As the API says: of all wishes within a window the mildest counts, so a rise must have been wanted throughout
`scaleUp.stabilization` and a fall throughout `scaleDown.stabilization`. A window that is not over yet since the
operator began to watch counts as not lasting. With `maxStep` each move is so large at most, and the next one in that
direction comes no sooner than the window, or SETTLE_S, after it.
"""

from dataclasses import dataclass

from sheaf_crds.autoscaling import AutoscalingPolicySpec, ScaleRule

SETTLE_S = 15.0
PARTS = 30
_SHORTEST_S = 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """The lowest and the highest wish from `start` to `end`."""

    start: float
    end: float
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was wished lately, oldest first, in a bounded number of spans; `since` is the first wish of all, `last` the
    last one."""

    spans: tuple[Span, ...] = ()
    since: float | None = None
    last: int = 0

    def with_wish(self, wish: int, window_s: float, now: float) -> "Wishes":
        """The wishes with one more, as far back as the window reaches."""
        since = now if self.since is None else self.since
        kept = tuple(span for span in self.spans if span.end >= now - window_s)
        if kept and now - kept[-1].start < max(_SHORTEST_S, window_s / PARTS):
            last = kept[-1]
            return Wishes((*kept[:-1], Span(last.start, now, min(last.low, wish), max(last.high, wish))), since, wish)
        return Wishes((*kept, Span(now, now, wish, wish)), since, wish)

    def lasted(self, window_s: float, now: float) -> bool:
        """Whether it has been watched for the whole window."""
        return self.since is not None and self.since <= now - window_s

    def least(self, window_s: float, now: float) -> int:
        """The lowest wish in the window."""
        return min((span.low for span in self._within(window_s, now)), default=self.last)

    def most(self, window_s: float, now: float) -> int:
        """The highest wish in the window."""
        return max((span.high for span in self._within(window_s, now)), default=self.last)

    def _within(self, window_s: float, now: float) -> list[Span]:
        return [span for span in self.spans if span.end >= now - window_s] if window_s else []


@dataclass(frozen=True, slots=True)
class Move:
    """Where to go; `waits` says that more is wished than may be followed yet, `stepped` that a step was cut."""

    replicas: int
    waits: bool = False
    stepped: bool = False


def settle(policy: AutoscalingPolicySpec, wishes: Wishes, current: int, changed_at: float, now: float) -> Move:
    """The number that the wishes allow; `changed_at` is when `current` was decided."""
    up, down = policy.scale_up, policy.scale_down
    rise = wishes.least(up.stabilization, now) if wishes.lasted(up.stabilization, now) else current
    fall = wishes.most(down.stabilization, now) if wishes.lasted(down.stabilization, now) else current
    if rise > current:
        return _step(up, current, rise, changed_at, now)
    if fall < current:
        return _step(down, current, fall, changed_at, now)
    return Move(current, waits=wishes.last != current)


def _step(rule: ScaleRule, current: int, target: int, changed_at: float, now: float) -> Move:
    if rule.max_step is None or abs(target - current) <= rule.max_step:
        return Move(target)
    if now - changed_at < max(SETTLE_S, rule.stabilization):
        return Move(current, waits=True)
    return Move(current + (rule.max_step if target > current else -rule.max_step), stepped=True)


def window_s(policy: AutoscalingPolicySpec) -> float:
    """How far back wishes are of use."""
    return max(policy.scale_up.stabilization, policy.scale_down.stabilization)
