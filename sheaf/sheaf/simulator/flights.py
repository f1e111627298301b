"""A request on its way through the simulated gateway, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sheaf.simulator.calls import Call
    from sheaf.simulator.pods import Pod
    from sheaf.simulator.runs import Runs


class Flight:
    """One request.

    Attributes:
        number: unique in a run.
        call: what is asked.
        hashes: the engine's hashes of the prompt's full blocks.
        chain: the gateway's hashes of the prompt's full blocks.
        pod: where it is, None while it waits.
        sent_at: when it was last sent to a pod, seconds.
        first_at: when its first token was out, 0 before.
        cached: tokens of its prompt found in the cache.
        kept: tokens that the caller had when its last pod was lost.
        attempts: pods that it was sent to.
        note: whatever the policy wants to remember of it.
    """

    __slots__ = (
        "attempts",
        "cached",
        "call",
        "chain",
        "first_at",
        "hashes",
        "kept",
        "note",
        "number",
        "pod",
        "sent_at",
    )

    def __init__(self, number: int, call: Call, hashes: Runs, chain: list[int]) -> None:
        self.number = number
        self.call = call
        self.hashes = hashes
        self.chain = chain
        self.pod: Pod[Flight] | None = None
        self.sent_at = 0.0
        self.first_at = 0.0
        self.cached = 0
        self.attempts = 0
        self.kept = 0
        self.note: Any = None
