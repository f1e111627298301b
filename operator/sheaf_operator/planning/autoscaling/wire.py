"""A gateway's answers as plain values: `/sheaf/v1/demand` and `/sheaf/v1/slos` of its management API."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from sheaf_crds import ApiType
from sheaf_crds.slo import SLOWindow

from sheaf_operator.planning.autoscaling.facts import Demand, Work
from sheaf_operator.planning.autoscaling.gather import Windows

MOST = 10_000_000

Count = Annotated[int, Field(ge=0, le=MOST)]
Number = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class _Wire(ApiType):
    model_config = ConfigDict(extra="ignore")


class ModelDemand(_Wire):
    """One Model of `models`."""

    model: str
    running: Count = 0
    waiting: Count = 0
    held: Count = 0
    slots: Count = 0
    arrival_rate: Number = 0.0
    service_s: Number = 0.0
    prompt_tokens: Number = 0.0
    uncached_tokens: Number = 0.0
    uncached_spread: Number = 0.0
    output_tokens: Number = 0.0
    context_tokens: Number = 0.0
    context_spread: Number = 0.0
    quiet_s: Number | None = None

    def demand(self) -> Demand:
        """As decisions take it; without a request that ended, its lengths are not known."""
        known = self.output_tokens > 0.0
        work = Work(
            self.prompt_tokens,
            self.uncached_tokens,
            self.output_tokens,
            self.uncached_spread,
            self.context_tokens,
            self.context_spread,
        )
        return Demand(
            running=self.running,
            waiting=self.waiting,
            held=self.held,
            rate=self.arrival_rate,
            service_s=self.service_s,
            slots=self.slots,
            work=work if known else None,
            quiet_s=self.quiet_s,
        )


class DemandAnswer(_Wire):
    """The answer of `/sheaf/v1/demand`."""

    models: Annotated[tuple[ModelDemand, ...], Field(max_length=100_000)]


class SLOFigures(_Wire):
    """One SLO of `slos`."""

    slo: str
    windows: Annotated[tuple[SLOWindow, ...], Field(max_length=8)] = ()


class SLOAnswer(_Wire):
    """The answer of `/sheaf/v1/slos`."""

    slos: Annotated[tuple[SLOFigures, ...], Field(max_length=100_000)]


def read_demand(content: Any) -> Mapping[str, Demand]:
    """By Model; ValidationError (a ValueError) where it is no such answer."""
    return {one.model: one.demand() for one in DemandAnswer.model_validate(content).models}


def read_windows(content: Any) -> Mapping[str, Windows]:
    """By SLO; ValidationError (a ValueError) where it is no such answer."""
    return {one.slo: one.windows for one in SLOAnswer.model_validate(content).slos}
