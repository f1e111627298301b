"""How far the gateway goes to continue a stream, and how far not."""

import msgspec


class MendingRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds: moves of one stream (0: streams are never continued), seconds that one waits for a pod, bytes of one
    journal and of all, tokens generated again, continuations that start at once for each ready pod, and the seconds
    before a pod's deadline by which its streams must have ended."""

    max_continuations: int = 8
    max_wait_s: float = 30.0
    max_journal: int = 2**20
    max_journals: int = 256 * 2**20
    max_replay: int = 1024
    starting_per_pod: int = 16
    lead_s: float = 2.0
