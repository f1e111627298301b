"""Model: a base model, the engine that runs it, the hardware it may use and how many replicas there may be."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from sheaf_crds.base import ApiType, Duration, Ref
from sheaf_crds.meta import AGE_COLUMN, READY_COLUMNS, Column, KubeObject, Status

MODEL_SOURCE_PATTERN = r"^(hf|s3|https|pvc|file)://[!-~]+$"
TEXT_PATTERN = r"^[^\x00]+$"
OPTIONAL_TEXT_PATTERN = r"^[^\x00]*$"
ENV_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
ACCELERATOR_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

ModelSource = Annotated[str, Field(pattern=MODEL_SOURCE_PATTERN, max_length=2048)]


Argument = Annotated[str, Field(pattern=TEXT_PATTERN, min_length=1, max_length=4096)]
DEFAULT_CAPACITY_PER_SLOT = 4


class EnvVar(ApiType):
    """One environment variable of the engine process."""

    name: Annotated[str, Field(pattern=ENV_PATTERN, min_length=1, max_length=256)] = Field(
        description="Name of the variable."
    )
    value: str = Field(description="Its value, taken as it is.", pattern=OPTIONAL_TEXT_PATTERN, max_length=32768)


class Engine(ApiType):
    """The program that runs the model."""

    name: Literal["vllm", "emulator"] = Field(
        default="vllm",
        description="vllm runs the model; emulator speaks the same API over a timing model, without weights or GPU.",
    )
    args: Annotated[tuple[Argument, ...], Field(max_length=64)] = Field(
        default=(),
        description="Further command line arguments, each as one item in the form --flag or --flag=value. "
        "Those that Sheaf sets itself (address, port, served name, LoRA and KV event settings) are refused.",
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = Field(
        default=(), description="Environment variables.", json_schema_extra={"listMapKey": "name"}
    )
    image: str | None = Field(
        default=None,
        description="Container image; the default is the chart's engine image.",
        min_length=1,
        max_length=1024,
    )


class Accelerator(ApiType):
    """A kind of accelerator that a replica may run on."""

    type: Annotated[str, Field(pattern=ACCELERATOR_PATTERN, min_length=1, max_length=63)] = Field(
        description="Type as nodes carry it in the label sheaf.dev/accelerator, such as nvidia-l4."
    )
    count: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Accelerators for one replica: the engine splits the "
        "model over them (tensor parallelism), unless engine.args set another parallelism.",
    )


class Lora(ApiType):
    """How many adapters a replica holds, and of which rank."""

    slots: int = Field(
        default=8,
        ge=0,
        le=512,
        description="Adapters in one batch (GPU slots) of a replica; 0 turns LoRA off.",
    )
    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="Highest rank of an adapter that a replica accepts."
    )
    max_adapters: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Adapters that a replica keeps loaded (slots and host memory); beyond it the least recently "
        "used one that is not placed there is unloaded. Default: four times slots.",
    )

    @property
    def capacity(self) -> int:
        """Adapters that one replica may hold loaded."""
        return self.max_adapters if self.max_adapters is not None else DEFAULT_CAPACITY_PER_SLOT * self.slots


class Spot(ApiType):
    """Whether replicas run on capacity that the cloud may take back."""

    policy: Literal["Never", "Preferred", "Required"] = Field(
        default="Never",
        description="Never: on-demand only. Preferred: spot, with on-demand while spot is not ready. "
        "Required: spot only.",
    )
    on_demand_floor: int = Field(
        default=0, ge=0, le=10_000, description="Replicas that always run on on-demand capacity."
    )
    over_provision: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Spot replicas beyond those wanted, against losses; at most as many as run on spot. Default: as "
        "many as the installation's prices make worth it, none where it knows no prices.",
    )


class ModelSpec(ApiType):
    """What a platform team wants of a base model."""

    source: ModelSource = Field(
        description="Where the weights are: hf://ORG/NAME[@REVISION], s3://BUCKET/PREFIX, https://HOST/DIR, "
        "pvc://CLAIM/PATH or file:///ABSOLUTE/PATH."
    )
    task: Literal["Generate", "Embed"] = Field(
        default="Generate",
        description="Generate answers chat and text completions; Embed answers embeddings.",
    )
    engine: Engine = Field(default_factory=Engine, description="The program that runs the model.")
    accelerators: Annotated[tuple[Accelerator, ...], Field(max_length=8)] = Field(
        default=(),
        description="Accelerators in order of preference, alternatives of one pod: those that differ from the first in "
        "count, resource, image or environment are left out, as the condition Resolved says. None: the model runs on "
        "CPU.",
    )
    lora: Lora = Field(default_factory=Lora, description="LoRA capacity of a replica.")
    replicas: int = Field(
        default=1,
        ge=0,
        le=10_000,
        description="Replicas wanted; the scale subresource and autoscaling move it. Without an autoscaling policy it "
        "must lie between minReplicas and maxReplicas; with one it is brought between them.",
    )
    min_replicas: int = Field(default=0, ge=0, le=10_000, description="Never fewer replicas than this.")
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Never more replicas than this; default: no bound of the Model.",
    )
    spot: Spot = Field(default_factory=Spot, description="Use of spot capacity.")
    startup_timeout: Duration = Field(
        default=900.0,
        description="How long a replica may take from its start until it is ready. A change restarts no replica that "
        "serves; one that was ended for taking longer than was allowed before is made anew.",
    )
    drain_timeout: Duration = Field(
        default=60.0,
        description="How long a replica may take to finish its streams when it has to go. A change restarts no "
        "replica; where others than Sheaf end a pod that was made before, it has the time that it was made with.",
    )
    slo_ref: Ref | None = Field(default=None, description="The SLO that callers of this Model were promised.")
    autoscaling_policy_ref: Ref | None = Field(
        default=None, description="How the number of replicas moves; none: spec.replicas alone counts."
    )


class SpotZone(ApiType):
    """What is remembered of a zone's spot capacity; counts are halved every two days."""

    model_config = ConfigDict(extra="ignore")

    zone: str = Field(description="Name of the zone.", min_length=1, max_length=253)
    losses: float = Field(default=0.0, ge=0, description="Pods that were taken there.")
    hours: float = Field(
        default=0.0,
        ge=0,
        description="Hours for which pods, now gone, were held there, weighed by the danger of their age.",
    )
    placed: float = Field(default=0.0, ge=0, description="Pods, now gone, that found capacity there.")
    refused: float = Field(default=0.0, ge=0, description="Pods that found none.")
    updated_at: datetime | None = Field(default=None, description="When the counts were right.")
    empty_at: datetime | None = Field(default=None, description="When capacity was missed there last.")
    counted: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=64)] = Field(
        default=(), description="UIDs of pods that are counted and may still be there."
    )


class ScalingDecision(ApiType):
    """One change of the number of replicas that an AutoscalingPolicy made."""

    model_config = ConfigDict(extra="ignore")

    at: datetime = Field(description="When it was decided.")
    before: int = Field(ge=0, description="Replicas before.")
    after: int = Field(ge=0, description="Replicas from then on.")
    reason: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)] = Field(
        description="What decided, in one CamelCase word: a signal, Schedule, Forecast, Idle or Woken."
    )
    message: str = Field(default="", max_length=1024, description="The figures behind it, for people.")


class ModelAutoscaling(ApiType):
    """What an AutoscalingPolicy decided for a Model, and what a restarted operator goes on with."""

    model_config = ConfigDict(extra="ignore")

    policy: str = Field(default="", max_length=63, description="Name of the AutoscalingPolicy that decides.")
    desired_replicas: int = Field(default=0, ge=0, description="Replicas decided last.")
    cold_start: Duration | None = Field(
        default=None,
        description="Time from a pod's creation until it serves, as pods showed; of the time without a node at most 5m "
        "count, of the rest at most startupTimeout.",
    )
    season: Annotated[tuple[float, ...], Field(max_length=168)] = Field(
        default=(),
        description="Requests a second in the busiest ten minutes of each hour of the week, from Thursday 00:00 UTC; "
        "-1: not seen.",
    )
    decisions: Annotated[tuple[ScalingDecision, ...], Field(max_length=10)] = Field(
        default=(), description="The last changes, the latest first."
    )


class ModelStatus(Status):
    """What was observed of a Model."""

    replicas: int = Field(default=0, ge=0, description="Pods of this Model, ready or not.")
    ready_replicas: int = Field(default=0, ge=0, description="Pods that serve.")
    selector: str = Field(
        default="", max_length=1024, description="Label selector of its pods, for the scale subresource."
    )
    adapters: int = Field(default=0, ge=0, description="Adapters declared for this Model.")
    spot_zones: Annotated[tuple[SpotZone, ...], Field(max_length=64)] = Field(
        default=(),
        description="What is remembered of spot capacity, zone by zone.",
        json_schema_extra={"listMapKey": "zone"},
    )
    autoscaling: ModelAutoscaling | None = Field(
        default=None, description="What its AutoscalingPolicy decided; none: spec.replicas counts."
    )


class Model(KubeObject):
    """A base model that Sheaf serves under its name."""

    PLURAL: ClassVar[str] = "models"
    SHORT: ClassVar[str] = "mdl"
    SCALES: ClassVar[bool] = True

    COLUMNS: ClassVar[tuple[Column, ...]] = (
        *READY_COLUMNS,
        Column("Replicas", ".spec.replicas", "integer"),
        Column("Desired", ".status.autoscaling.desiredReplicas", "integer"),
        Column("Serving", ".status.readyReplicas", "integer"),
        Column("Adapters", ".status.adapters", "integer"),
        Column("Task", ".spec.task", wide=True),
        Column("SLO", ".spec.sloRef.name", wide=True),
        Column("Source", ".spec.source", wide=True),
        AGE_COLUMN,
    )

    kind: Literal["Model"] = Field(default="Model", description="Model.")
    spec: ModelSpec = Field(description="What a platform team wants of the Model.")
    status: ModelStatus = Field(default_factory=ModelStatus, description="What was observed of the Model.")
