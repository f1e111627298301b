"""Adapter: a LoRA adapter of a Model, served under its own name."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sheaf_crds.base import ApiType, Digest, Ref, Size
from sheaf_crds.meta import AGE_COLUMN, READY_COLUMNS, Column, KubeObject, Status

ADAPTER_SOURCE_PATTERN = r"^(hf|s3|https|file)://[!-~]+$"

AdapterSource = Annotated[str, Field(pattern=ADAPTER_SOURCE_PATTERN, max_length=2048)]
PlacementState = Literal["Resident", "Loading", "Failed", "Pending"]


class AdapterSpec(ApiType):
    """What a platform team wants of an adapter."""

    model_ref: Ref = Field(description="The Model that this adapter was trained for.")
    source: AdapterSource = Field(
        description="Where the adapter is (PEFT layout, safetensors only): hf://ORG/NAME[@REVISION][/SUBDIR], "
        "s3://BUCKET/PREFIX, https://HOST/DIR or file:///ABSOLUTE/PATH."
    )
    digest: Digest | None = Field(
        default=None,
        description="sha256 over the adapter's files, as `sheaf digest DIR` prints it; a source that differs is "
        "refused.",
    )
    rank: int | None = Field(
        default=None, ge=1, le=512, description="Rank of the adapter; a source of another rank is refused."
    )
    replicas: int = Field(
        default=1,
        ge=0,
        le=10_000,
        description="Replicas of the Model that keep the adapter loaded; more load it when requests come. "
        "0: loaded on demand only.",
    )
    priority: int = Field(
        default=0, ge=-1000, le=1000, description="Who stays when capacity is short: the higher number."
    )
    size_limit: Size = Field(default=2 * 2**30, description="Largest total size of the adapter's files.")


class Placement(ApiType):
    """Where an adapter is, as the agent of that pod reports it."""

    pod: str = Field(description="Name of the pod.", max_length=253)
    state: PlacementState = Field(description="What the pod's agent says of the adapter.")
    digest: str = Field(default="", description="Digest of what is loaded there.", max_length=128)
    message: str = Field(default="", description="Why, where it is not resident.", max_length=4096)


class AdapterStatus(Status):
    """What was observed of an Adapter."""

    ready_replicas: int = Field(default=0, ge=0, description="Ready pods on which the adapter is resident.")
    desired_replicas: int = Field(default=0, ge=0, description="Pods that should hold the adapter now.")
    placements: Annotated[tuple[Placement, ...], Field(max_length=256)] = Field(
        default=(), description="Pods that hold it or should.", json_schema_extra={"listMapKey": "pod"}
    )


class Adapter(KubeObject):
    """A LoRA adapter that Sheaf serves under its name."""

    PLURAL: ClassVar[str] = "adapters"
    SHORT: ClassVar[str] = "adp"

    COLUMNS: ClassVar[tuple[Column, ...]] = (
        *READY_COLUMNS,
        Column("Model", ".spec.modelRef.name"),
        Column("Wanted", ".status.desiredReplicas", "integer"),
        Column("Resident", ".status.readyReplicas", "integer"),
        Column("Priority", ".spec.priority", "integer", wide=True),
        Column("Source", ".spec.source", wide=True),
        AGE_COLUMN,
    )

    kind: Literal["Adapter"] = Field(default="Adapter", description="Adapter.")
    spec: AdapterSpec = Field(description="What a platform team wants of the Adapter.")
    status: AdapterStatus = Field(default_factory=AdapterStatus, description="What was observed of the Adapter.")
