"""A token bucket over time that is given, in seconds: `rate` flows in each second up to `capacity`, and debt
is allowed.

A charge is admitted while the bucket holds it; what a request costs beyond its estimate is taken afterwards
and may leave debt, which later requests wait for.
"""


class Bucket:
    """How much may still be spent."""

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self.capacity = capacity
        self.rate = rate
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """What may be spent now; negative: debt."""
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be spent (an amount above the capacity needs a full bucket); 0: now."""
        level = self.level(now)
        return 0.0 if level >= amount else max(0.0, (min(amount, self.capacity) - level) / self.rate)

    def resized(self, capacity: float, rate: float, now: float) -> "Bucket":
        """One of another size, as full or as deep in debt for its size as this one."""
        other = Bucket(capacity, rate, now)
        other._level = capacity * self.level(now) / self.capacity
        return other

    def spend(self, amount: float, now: float) -> None:
        """Take `amount`, or give it back where it is negative."""
        level = self.level(now) - amount
        self._level = min(self.capacity, level)
