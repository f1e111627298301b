"""What a supervisor decides about its workers: pure."""

from collections.abc import Collection, Mapping

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0
CALM_S = 60.0


def backoff(crashes: int) -> float:
    """Seconds until a worker is started again that crashed so often without a calm minute in between."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(crashes - 1, 16))


def crashed(before: int, lived_s: float) -> int:
    """How many crashes in a row this one is, after a life of so many seconds."""
    return 1 if lived_s >= CALM_S else before + 1


def adopted(count: int, alive: Collection[int]) -> Mapping[int, tuple[int, ...]]:
    """Which sockets each living worker accepts on beside its own: those of the dead go to the next one alive."""
    found: dict[int, tuple[int, ...]] = dict.fromkeys(sorted(alive), ())
    for dead in sorted(set(range(count)) - set(alive)) if alive else ():
        heir = min(alive, key=lambda index: (index - dead) % count)
        found[heir] = (*found[heir], dead)
    return found
