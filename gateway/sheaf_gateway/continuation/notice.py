"""Which streams of a pod that must go by a deadline stay to their end, and which move: SpotServe's just-in-time rule
(ASPLOS'24), decided stream by stream.

What a stream has still to say is not known: at most what the caller allowed, and else, as lengths of answers are close
to memoryless, as much as an answer of the Model has on average.
"""

from typing import NamedTuple

_UNKNOWN = 256.0
_WEIGHT = 0.05


class Progress(NamedTuple):
    """How a stream goes: tokens so far, the seconds that they took, and the most that it may have (None: unbounded)."""

    tokens: int
    seconds: float
    limit: int | None


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
