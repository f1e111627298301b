"""What a scaling decision is made from, and what it is: plain immutable values. Times are seconds, rates a second."""

from dataclasses import dataclass

Bounds = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one replica is: the coefficients of the timing model that matter here (docs/timing-model.md).

    Attributes:
        step_s: seconds for an engine step with nothing in it.
        token_s: seconds for each prompt token computed.
        pair_s: seconds for each pair of a prompt token computed and a token that it attends to.
        sequence_s: seconds for each sequence that decodes in a step.
        context_s: seconds for each token of context that a decoding sequence reads.
        batch_tokens: tokens computed in one step.
        sequences: sequences that run at once.
        kv_tokens: tokens that the KV cache holds.
    """

    step_s: float
    token_s: float
    pair_s: float = 0.0
    sequence_s: float = 0.0
    context_s: float = 0.0
    batch_tokens: int = 2048
    sequences: int = 256
    kv_tokens: int = 100_000

    def slower(self, factor: float) -> "Speed":
        """The same replica, every step taking `factor` times as long."""
        return Speed(
            self.step_s * factor,
            self.token_s * factor,
            self.pair_s * factor,
            self.sequence_s * factor,
            self.context_s * factor,
            self.batch_tokens,
            self.sequences,
            self.kv_tokens,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What an average request asks, in tokens; `spread` is the squared coefficient of variation of `uncached`.

    `context` is what a sequence that decodes has behind it, on average over all steps, with its own `context_spread`;
    0: not known, and taken for what exponential lengths of answers make of it.
    """

    prompt: float
    uncached: float
    output: float
    spread: float = 1.0
    context: float = 0.0
    context_spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Promise:
    """What an SLO promises: (quantile in 0..1, seconds) pairs of each latency, in rising order of quantile."""

    ttft: Bounds = ()
    tpot: Bounds = ()
    e2e: Bounds = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is promised."""
        return not (self.ttft or self.tpot or self.e2e)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a Model at one moment, summed over gateways.

    Attributes:
        running: requests admitted and not over.
        waiting: requests that wait in gateways while pods serve.
        held: requests held for a first pod.
        rate: arrivals a second, over about the last half minute.
        service_s: mean seconds from admission to the end; 0: not known.
        slots: requests that the pods take at once, as gateways see it.
        work: what an average request asks; None: not known yet.
        kv_use: mean share of KV blocks in use on the pods that serve.
        burn: error-budget burn of the SLO over the last five minutes; None: nothing was measured.
        hour_burn: the same over the last hour.
        quiet_s: for how long nobody has been there; None: nobody ever was, or it is not known.
        complete: whether every gateway has answered lately; what is missing can only add to the rest.
    """

    running: int = 0
    waiting: int = 0
    held: int = 0
    rate: float = 0.0
    service_s: float = 0.0
    slots: int = 0
    work: Work | None = None
    kv_use: float = 0.0
    burn: float | None = None
    hour_burn: float | None = None
    quiet_s: float | None = None
    complete: bool = True

    @property
    def present(self) -> int:
        """Requests that are anywhere."""
        return self.running + self.waiting + self.held


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a Model besides what is asked of it.

    Attributes:
        declared: spec.replicas, where no number was decided yet.
        low: the Model's own minReplicas.
        high: the Model's own maxReplicas; None: no bound.
        ready: pods that serve.
        speed: of one replica; None: not known.
        promise: of its SLO; None: it has none.
        cold_start_s: from the wish for a replica until it serves.
    """

    declared: int = 1
    low: int = 0
    high: int | None = None
    ready: int = 0
    speed: Speed | None = None
    promise: Promise | None = None
    cold_start_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a number is what it is: a CamelCase word for programs and a clause for people."""

    word: str
    text: str
