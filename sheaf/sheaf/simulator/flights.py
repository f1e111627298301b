"""A request on its way through the simulated gateway, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sheaf_gateway.admission.terms import Ask

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
        ask: what admission was asked.
        admitted_at: when admission let it in, seconds.
        sent_at: when it was last sent to a pod, seconds.
        first_at: when its first token was out, 0 before.
        cached: tokens of its prompt found in the cache, before its first token.
        found: the same of the pod where it was last.
        kept: tokens that the caller had when its last pod was lost.
        attempts: pods that it was sent to.
        note: whatever the policy wants to remember of it.
    """

    __slots__ = (
        "admitted_at",
        "ask",
        "attempts",
        "cached",
        "call",
        "chain",
        "first_at",
        "found",
        "hashes",
        "kept",
        "note",
        "number",
        "pod",
        "sent_at",
    )

    ask: Ask

    def __init__(self, number: int, call: Call, hashes: Runs, chain: list[int]) -> None:
        self.number = number
        self.call = call
        self.hashes = hashes
        self.chain = chain
        self.pod: Pod[Flight] | None = None
        self.sent_at = 0.0
        self.admitted_at = 0.0
        self.first_at = 0.0
        self.cached = self.found = 0
        self.attempts = 0
        self.kept = 0
        self.note: Any = None
