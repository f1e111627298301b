"""What a call that is over means: what it is charged, what is learnt of it, and whether it broke a promise."""

import msgspec

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.admission.terms import Ask

_BREAKING = frozenset({"slo_unattainable", "stream_interrupted"})


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the engine counted them; None where it did not say."""

    prompt: int | None = None
    output: int | None = None
    cached: int | None = None

    def total(self) -> int | None:
        """Prompt and output tokens together."""
        if self.prompt is None and self.output is None:
            return None
        return (self.prompt or 0) + (self.output or 0)


NOTHING = Usage()


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


def settle(admission: Admission, ask: Ask, over: Ending, now: float) -> None:
    """Bring the books of an admitted call to what it was in the end, and give its place back."""
    admission.release(
        ask,
        now,
        used_tokens=over.total(ask.prompt),
        uncached=over.uncached() if over.billed else 0.0,
        output=over.output() if over.billed else 0.0,
        service_s=over.service_s if over.well else None,
        first_s=over.first_s,
    )


def breaks_promise(status: int, error: str | None) -> bool:
    """Whether a call that was not answered counts against its SLO: not what is its caller's own fault, or limit."""
    return status >= 500 or error in _BREAKING
