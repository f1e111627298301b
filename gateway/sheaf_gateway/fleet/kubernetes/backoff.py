"""How long to wait after failures in a row: exponential, capped, with jitter; pure but for the generator passed in."""

from random import Random

FIRST_S = 0.2
LONGEST_S = 10.0
_MAX_DOUBLINGS = 16


def delay(failures: int, random: Random, asked_s: float = 0.0) -> float:
    """Seconds to wait after `failures` (1 or more) in a row, at least what the server asked for, up to a minute."""
    longest = min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
    return max(longest * random.uniform(0.5, 1.0), min(asked_s, 60.0) * random.uniform(1.0, 1.2))
