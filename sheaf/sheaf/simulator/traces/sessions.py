"""Which requests of a trace belong to one conversation, where the trace does not say.

A request continues the conversation that asked the deepest part of its prompt last, unless it shares no more than what
many share: a first segment alone is taken for a common system prompt.
"""

from __future__ import annotations

from sheaf.simulator.calls import Segment

COMMON = 1


class Sessions:
    """Numbers conversations by their prefixes."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}
        self._count = 0

    def of(self, segments: tuple[Segment, ...]) -> int:
        """The conversation of a request with these segments."""
        path = [(depth, name) for depth, (name, _) in enumerate(segments)]
        known = next((self._last[place] for place in reversed(path[COMMON:]) if place in self._last), None)
        if known is None:
            self._count += 1
            known = self._count
        for place in path[COMMON:]:
            self._last[place] = known
        return known
