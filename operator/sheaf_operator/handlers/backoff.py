"""When to try again what failed, by object: exponential, bounded, forgotten on success. Time is an argument."""

from collections.abc import Iterable
from dataclasses import dataclass

FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0


@dataclass(frozen=True, slots=True)
class _Failure:
    times: int
    retry_at: float


class Backoff:
    """The failures of each object; memory is bounded by the objects of the latest plan."""

    def __init__(self, first: float = FIRST_DELAY, longest: float = LONGEST_DELAY) -> None:
        self._first, self._longest = first, longest
        self._failures: dict[str, _Failure] = {}

    def allows(self, key: str, now: float) -> bool:
        """Whether the object may be acted on."""
        failure = self._failures.get(key)
        return failure is None or now >= failure.retry_at

    def failed(self, key: str, now: float, least: float = 0.0) -> float:
        """Note a failure; returns the seconds until the next attempt, which are at least `least`."""
        times = self._failures[key].times + 1 if key in self._failures else 1
        delay = min(self._longest, max(least, self._first * 2.0 ** min(times - 1, 30)))
        self._failures[key] = _Failure(times, now + delay)
        return delay

    def succeeded(self, key: str) -> None:
        """Forget the object's failures."""
        self._failures.pop(key, None)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget objects that no plan is about any more."""
        kept = set(keys)
        self._failures = {key: failure for key, failure in self._failures.items() if key in kept}

    def next_retry(self) -> float | None:
        """When the first object may be tried again (same clock as `now`)."""
        return min((failure.retry_at for failure in self._failures.values()), default=None)

    @property
    def size(self) -> int:
        """Objects held back."""
        return len(self._failures)
