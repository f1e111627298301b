"""What a call that is over means for the books."""

import msgspec

from sheaf_gateway.api.records import Record
from sheaf_gateway.api.usage import Usage


class Ending(msgspec.Struct, frozen=True):
    """How a call went, for the accounts. `opened_at` and `last_at` are loop seconds, the rest seconds from admission;
    `produced` counts the tokens of a stream, or its events where the engine tells no ids; `billed` says that what was
    given is charged (it was answered, or the client left), `well` that it tells how long things take. `first_s` is
    None where it does not tell how long pods take to begin."""

    usage: Usage
    produced: int
    opened_at: float
    last_at: float
    service_s: float
    first_s: float | None
    billed: bool
    well: bool

    def output(self) -> float | None:
        """Tokens produced, as reported or as streamed; None where neither tells."""
        return float(self.usage.output) if self.usage.output is not None else (float(self.produced) or None)

    def uncached(self) -> float | None:
        """Prompt tokens computed, where the engine reported them."""
        return None if self.usage.prompt is None else float(self.usage.prompt - (self.usage.cached or 0))

    def total(self, prompt: float) -> float | None:
        """Tokens for limits: nothing where it failed, what the engine reports, else what was streamed."""
        if not self.billed:
            return 0.0
        total = self.usage.total()
        if total is None and self.produced:
            return prompt + self.produced
        return total


def ending(
    record: Record, usage: Usage, produced: int, opened_at: float, last_at: float, now: float, *, tells: bool
) -> Ending:
    """How a call went that ends now; `tells` says that its times are those of a pod: it computed, and nobody waited for
    pods that were lost."""
    queued, first, error = record.queued_ms / 1000.0, record.ttft_ms, record.error
    first_s = None if first is None or not tells else first / 1000.0 - queued
    billed = record.status < 400 if error is None else error == "client_gone"
    well = billed and error is None and tells
    return Ending(usage, produced, opened_at, last_at, now - opened_at - queued, first_s, billed, well)
