"""The retry budget: attempts stay below 1.2 times the requests plus ten a second, whatever fails.

A token bucket: every request adds `ratio` of a retry, every second adds `per_second` up to that number, a
retry takes one.
"""


class RetryBudget:
    """How many retries may still be made; the state is one number and the time it holds for, in seconds."""

    def __init__(self, ratio: float = 0.2, per_second: float = 10.0, cap: float = 100.0) -> None:
        self._ratio = ratio
        self._per_second = per_second
        self._cap = cap
        self._tokens = per_second
        self._at: float | None = None

    def requested(self) -> None:
        """Count a first attempt."""
        self._tokens = min(self._cap, self._tokens + self._ratio)

    def take(self, now: float, *, patient: bool = False) -> bool:
        """Take one retry if there is one; who can wait leaves half a second's worth to those who cannot."""
        self._refill(now)
        if self._tokens < (self._per_second / 2.0 if patient else 1.0):
            return False
        self._tokens -= 1.0
        return True

    def _refill(self, now: float) -> None:
        elapsed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        if self._tokens < self._per_second:
            self._tokens = min(self._per_second, self._tokens + elapsed * self._per_second)
