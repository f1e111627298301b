"""SLO: what callers were promised. One object drives admission, routing and autoscaling."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sheaf_crds.base import ApiType, Duration
from sheaf_crds.meta import AGE_COLUMN, READY_COLUMNS, Column, KubeObject, Status

Weight = Annotated[int, Field(ge=1, le=1000)]


class Percentiles(ApiType):
    """Upper bounds of a latency by percentile; those left out are not promised."""

    p50: Duration | None = Field(default=None, description="Bound for half of all requests.")
    p90: Duration | None = Field(default=None, description="Bound for 90 % of all requests.")
    p95: Duration | None = Field(default=None, description="Bound for 95 % of all requests.")
    p99: Duration | None = Field(default=None, description="Bound for 99 % of all requests.")

    def bounds(self) -> tuple[tuple[float, float], ...]:
        """The promised (quantile in 0..1, seconds) pairs, in rising order of quantile."""
        named = ((0.5, self.p50), (0.9, self.p90), (0.95, self.p95), (0.99, self.p99))
        return tuple((quantile, bound) for quantile, bound in named if bound is not None)


class Fairness(ApiType):
    """How tenants share the pods."""

    policy: Literal["None", "VTC", "DLPM"] = Field(
        default="DLPM",
        description="None: first come, first served. VTC: equal service in tokens. DLPM: that, keeping locality.",
    )
    weights: Annotated[dict[str, Weight], Field(max_length=256)] = Field(
        default_factory=dict, description="Share of each tenant, from 1 to 1000; tenants not named weigh 1."
    )


class Limits(ApiType):
    """Bounds for each tenant; those left out do not bound."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Requests that may start in a minute."
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000_000, description="Prompt and output tokens in a minute."
    )
    max_concurrent: int | None = Field(default=None, ge=1, le=1_000_000, description="Requests that may run at once.")


class Queue(ApiType):
    """How long and how many requests may wait in the gateway."""

    max_requests: int = Field(default=1024, ge=0, le=1_000_000, description="Requests that may wait at once.")
    max_wait: Duration = Field(default=30.0, description="Longest wait before a request is answered 503.")


class SLOSpec(ApiType):
    """What callers were promised."""

    class_: Literal["Interactive", "Batch"] = Field(
        default="Interactive", alias="class", description="Interactive goes first; Batch takes what is left."
    )
    ttft: Percentiles = Field(default_factory=Percentiles, description="Time to first token.")
    tpot: Percentiles = Field(default_factory=Percentiles, description="Time for each further token.")
    e2e: Percentiles = Field(default_factory=Percentiles, alias="e2e", description="Time from request to last token.")
    fairness: Fairness = Field(default_factory=Fairness, description="How tenants share.")
    limits: Limits = Field(default_factory=Limits, description="Bounds for each tenant.")
    queue: Queue = Field(default_factory=Queue, description="Waiting in the gateway.")


class Observed(ApiType):
    """Percentiles of a latency as they were measured; those left out were not."""

    p50: Duration | None = Field(default=None, description="Half of all requests took no longer.")
    p90: Duration | None = Field(default=None, description="90 % of all requests took no longer.")
    p95: Duration | None = Field(default=None, description="95 % of all requests took no longer.")
    p99: Duration | None = Field(default=None, description="99 % of all requests took no longer.")


class SLOWindow(ApiType):
    """How the promise was kept over one sliding window."""

    window: Literal["5m", "1h"] = Field(description="How far back this looks.")
    requests: int = Field(default=0, ge=0, description="Requests that ended, or were refused for load.")
    failed: int = Field(default=0, ge=0, description="Those of them that were refused for load or failed.")
    attained_percent: float | None = Field(
        default=None, ge=0, le=100, description="Share of requests that kept every promise."
    )
    goodput: float = Field(default=0.0, ge=0, description="Requests a second that kept every promise.")
    burn: float = Field(
        default=0.0,
        ge=0,
        description="Share of requests beyond a bound over the share that may be; above 1: too many.",
    )
    ttft: Observed = Field(default_factory=Observed, description="Time to first token.")
    tpot: Observed = Field(default_factory=Observed, description="Time for each further token.")
    e2e: Observed = Field(default_factory=Observed, alias="e2e", description="Time from request to last token.")


class SLOStatus(Status):
    """What was observed of an SLO."""

    models: int = Field(default=0, ge=0, description="Models that refer to this SLO.")
    windows: Annotated[tuple[SLOWindow, ...], Field(max_length=8)] = Field(
        default=(),
        description="How the promise was kept, one entry for each window.",
        json_schema_extra={"listMapKey": "window"},
    )


class SLO(KubeObject):
    """A promise to callers."""

    PLURAL: ClassVar[str] = "slos"
    SHORT: ClassVar[str] = "slo"

    COLUMNS: ClassVar[tuple[Column, ...]] = (
        *READY_COLUMNS,
        Column("Class", ".spec.class"),
        Column("TTFT-P95", ".spec.ttft.p95"),
        Column("TPOT-P95", ".spec.tpot.p95"),
        Column("Models", ".status.models", "integer"),
        Column("Fairness", ".spec.fairness.policy", wide=True),
        AGE_COLUMN,
    )

    kind: Literal["SLO"] = Field(default="SLO", description="SLO.")
    spec: SLOSpec = Field(default_factory=SLOSpec, description="What callers were promised.")
    status: SLOStatus = Field(default_factory=SLOStatus, description="What was observed of the SLO.")
