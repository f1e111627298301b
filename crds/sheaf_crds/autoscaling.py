"""AutoscalingPolicy: how a Model scales; many Models may refer to one."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sheaf_crds.base import ApiType, Duration, Name
from sheaf_crds.meta import AGE_COLUMN, READY_COLUMNS, Column, KubeObject, Status

TIME_OF_DAY_PATTERN = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
END_OF_WINDOW_PATTERN = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"
TIME_ZONE_PATTERN = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"

Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
TimeOfDay = Annotated[str, Field(pattern=TIME_OF_DAY_PATTERN, min_length=5, max_length=5)]
EndOfWindow = Annotated[str, Field(pattern=END_OF_WINDOW_PATTERN, min_length=5, max_length=5)]
TimeZone = Annotated[str, Field(pattern=TIME_ZONE_PATTERN, min_length=1, max_length=64)]
Signal = Literal["SLO", "Concurrency", "QueuePressure"]


class ScaleRule(ApiType):
    """How fast the number of replicas moves in one direction."""

    stabilization: Duration = Field(
        default=0.0,
        description="How long a wish must last before it is followed; the mildest wish in it counts.",
    )
    max_step: int | None = Field(default=None, ge=1, le=10_000, description="Most replicas moved at once.")


class ScaleDownRule(ScaleRule):
    """How fast replicas are removed: slower than they are added, unless told otherwise."""

    stabilization: Duration = Field(
        default=300.0,
        description="How long a wish must last before it is followed; the mildest wish in it counts.",
    )


class ScaleToZero(ApiType):
    """When the last replica may go."""

    after: Duration = Field(default=1800.0, description="Time without a request after which no replica is kept.")


class Forecast(ApiType):
    """A floor from what was asked at the same hour before."""

    history: Literal["Day", "Week"] = Field(
        default="Week",
        description="Day: the same hour of the day before. Week: that and of the week before, the higher of both.",
    )


class Schedule(ApiType):
    """Bounds for certain hours of the week."""

    name: Name = Field(description="Name of the window.")
    days: Annotated[tuple[Day, ...], Field(max_length=7)] = Field(
        default=(),
        description="Days on which the window opens, each once; none: every day.",
        json_schema_extra={"listSet": True},
    )
    start: TimeOfDay = Field(description="When it opens, HH:MM.")
    end: EndOfWindow = Field(
        description="When it closes, HH:MM; earlier than start: on the next day; 24:00: with the end of the day."
    )
    time_zone: TimeZone = Field(default="UTC", description="IANA time zone of start and end, such as Europe/Berlin.")
    min_replicas: int | None = Field(default=None, ge=0, le=10_000, description="Floor while the window is open.")
    max_replicas: int | None = Field(default=None, ge=1, le=10_000, description="Ceiling while the window is open.")


class AutoscalingPolicySpec(ApiType):
    """How a Model scales."""

    signal: Signal = Field(
        default="SLO",
        description="SLO: predicted attainment of the Model's SLO. Concurrency: running requests of a replica. "
        "QueuePressure: waiting requests and KV use.",
    )
    target: float | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        description="Value to hold for each replica: requests (Concurrency, where it is required) or share of capacity "
        "from 0 to 1 (QueuePressure). SLO needs none.",
    )
    min_replicas: int = Field(
        default=1, ge=0, le=10_000, description="Never fewer replicas than this; 0 goes with scaleToZero only."
    )
    max_replicas: int = Field(ge=1, le=10_000, description="Never more replicas than this.")
    scale_up: ScaleRule = Field(default_factory=ScaleRule, description="How fast replicas are added.")
    scale_down: ScaleDownRule = Field(default_factory=ScaleDownRule, description="How fast replicas are removed.")
    scale_to_zero: ScaleToZero | None = Field(
        default=None, description="When the last replica may go, whatever minReplicas says; none: minReplicas stay."
    )
    forecast: Forecast | None = Field(
        default=None,
        description="Keep ready for what is usual at this hour, and by the time that a replica takes to start; the "
        "signal still adds what comes besides. None: the signal alone decides.",
    )
    schedules: Annotated[tuple[Schedule, ...], Field(max_length=32)] = Field(
        default=(), description="Bounds for certain hours.", json_schema_extra={"listMapKey": "name"}
    )


class AutoscalingPolicyStatus(Status):
    """What was observed of an AutoscalingPolicy."""

    models: int = Field(default=0, ge=0, description="Models that refer to this policy.")


class AutoscalingPolicy(KubeObject):
    """How Models scale."""

    PLURAL: ClassVar[str] = "autoscalingpolicies"
    SHORT: ClassVar[str] = "asp"

    COLUMNS: ClassVar[tuple[Column, ...]] = (
        *READY_COLUMNS,
        Column("Signal", ".spec.signal"),
        Column("Min", ".spec.minReplicas", "integer"),
        Column("Max", ".spec.maxReplicas", "integer"),
        Column("Models", ".status.models", "integer"),
        Column("To-zero", ".spec.scaleToZero.after", wide=True),
        AGE_COLUMN,
    )

    kind: Literal["AutoscalingPolicy"] = Field(default="AutoscalingPolicy", description="AutoscalingPolicy.")
    spec: AutoscalingPolicySpec = Field(description="How Models scale.")
    status: AutoscalingPolicyStatus = Field(
        default_factory=AutoscalingPolicyStatus, description="What was observed of the AutoscalingPolicy."
    )
