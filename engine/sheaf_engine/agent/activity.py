"""How much of the time each adapter is used: pure, from looks at the engine at known times.

An exponentially weighted mean over about a minute of "had requests just now" (1 or 0). What is told moves in steps of
0.1, and only when the mean has left the step by a clear margin, so that the told state does not flutter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp

MINUTE = 60.0
STEP = 0.1
MARGIN = 0.08
FORGOTTEN = 0.02


@dataclass(frozen=True, slots=True)
class Activity:
    """The mean share of time in use, and what is told of it (a multiple of 0.1)."""

    mean: float = 0.0
    told: float = 0.0


def observe(before: Mapping[str, Activity], active: Iterable[str], seconds: float) -> dict[str, Activity]:
    """The activities after `seconds` more in which the adapters `active` were in use."""
    kept = exp(-max(0.0, seconds) / MINUTE)
    names = set(active)
    after = {name: _moved(before.get(name, Activity()), kept, used=name in names) for name in before.keys() | names}
    return {name: one for name, one in after.items() if one.told or one.mean > FORGOTTEN or name in names}


def _moved(before: Activity, kept: float, *, used: bool) -> Activity:
    mean = before.mean * kept + (1.0 - kept if used else 0.0)
    told = round(round(mean / STEP) * STEP, 1) if abs(mean - before.told) > MARGIN else before.told
    return Activity(mean, told)
