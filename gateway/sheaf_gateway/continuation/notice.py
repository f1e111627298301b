"""Which streams of a pod that must go by a deadline stay to their end, and which move: SpotServe's just-in-time rule
(ASPLOS'24), decided stream by stream.

A pod of which nobody says when it goes is taken to go when its Model's drain timeout is over.

What a stream has still to say is not known: at most what the caller allowed, and else, as lengths of answers are close
to memoryless, as much as an answer of the Model has on average.
"""

from collections.abc import Iterable
from typing import NamedTuple

_UNKNOWN = 256.0
_WEIGHT = 0.05


class Progress(NamedTuple):
    """How a stream goes: tokens so far, the seconds that they took, and the most that it may have (None: unbounded)."""

    tokens: int
    seconds: float
    limit: int | None


class Drains:
    """When each pod that drains goes, in Unix seconds: as told, else the drain timeout after it was first heard of."""

    def __init__(self) -> None:
        self.ends: dict[str, float] = {}
        self._heard: dict[tuple[str, str], float] = {}

    def hear(self, pods: Iterable[tuple[str, str, float, float]], now: float) -> None:
        """The name, uid, deadline (0: not told) and drain timeout in seconds of all pods that drain now."""
        found = tuple(pods)
        self._heard = {(name, uid): self._heard.get((name, uid), now) for name, uid, _, _ in found}
        self.ends = {name: deadline or self._heard[name, uid] + timeout_s for name, uid, deadline, timeout_s in found}


class Lengths:
    """The mean length of a Model's answers, in tokens: exponentially weighted."""

    def __init__(self) -> None:
        self.mean = 0.0

    def observe(self, tokens: int) -> None:
        """An answer ended well."""
        self.mean = float(tokens) if not self.mean else self.mean + _WEIGHT * (tokens - self.mean)


def remaining(progress: Progress, mean: float) -> float:
    """Tokens that a stream has still to say."""
    expected = mean or _UNKNOWN
    return expected if progress.limit is None else max(0.0, min(progress.limit - progress.tokens, expected))


def stays(progress: Progress, mean: float, left_s: float, lead_s: float) -> bool:
    """Whether a stream ends `lead_s` before its pod does, which is `left_s` from now."""
    if progress.tokens < 2 or progress.seconds <= 0:
        return False
    pace = progress.seconds / (progress.tokens - 1)
    return remaining(progress, mean) * pace <= left_s - lead_s
