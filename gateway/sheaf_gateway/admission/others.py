"""How gateways that share a Model's pods divide what these take: each decides alone, from what the others tell.

While nobody waits elsewhere a gateway may take whatever is free. Once somebody does, it yields: it lets nobody in
beyond its share of what is asked in all. One request it may always have under way, so that nobody starves whatever
the others do. Numbers that are a moment old can let in a few too many; slots are idle for no longer than that moment.
"""

import msgspec


class Others(msgspec.Struct, frozen=True):
    """What all other gateways together have of a Model: requests let in, and requests that wait."""

    running: int = 0
    waiting: int = 0


def room(slots: int, running: int, waiting: int, others: Others) -> int:
    """How many requests this gateway may have let in at once.

    Args:
        slots: requests that the Model's pods take at once, whosever they are.
        running: requests that this gateway has let in.
        waiting: requests that wait here, or want to come in now.
        others: what the others tell.
    """
    free = slots - others.running
    if others.waiting:
        asked = others.running + others.waiting
        free = min(free, slots - slots * asked // (asked + running + waiting))
    return max(free, min(1, slots))
