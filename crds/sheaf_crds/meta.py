"""What all four kinds share: metadata, conditions (KEP-1623), and the outer shape of an object."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field

from sheaf_crds.base import ApiType, Name


class Metadata(ApiType):
    """The part of Kubernetes' ObjectMeta that Sheaf reads; everything else is kept out of decisions."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()


class Condition(ApiType):
    """One observed aspect of an object, after KEP-1623."""

    type: str = Field(description="Aspect of the object, such as Ready.", min_length=1, max_length=316)
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the aspect holds.")
    reason: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=1024)] = Field(
        description="Why, in one CamelCase word for programs."
    )
    message: str = Field(default="", description="Why, and how to mend it, for people.", max_length=32768)
    observed_generation: int = Field(default=0, ge=0, description="metadata.generation that this was seen at.")
    last_transition_time: datetime | None = Field(default=None, description="When status last changed.")


class Status(ApiType):
    """What every status has; unknown fields are kept out, so that an older Sheaf reads a newer one's objects."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int = Field(
        default=0, ge=0, description="metadata.generation that this status was computed from."
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=32)] = Field(
        default=(),
        description="Observed conditions, one for each type.",
        json_schema_extra={"listMapKey": "type"},
    )

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if it was reported."""
        return next((c for c in self.conditions if c.type == kind), None)


class Column(NamedTuple):
    """A column of `kubectl get`; those with `wide` show with -o wide only."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False


READY_COLUMNS = (
    Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
    Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
)
AGE_COLUMN = Column("Age", ".metadata.creationTimestamp", "date")


class KubeObject(ApiType):
    """An object of Sheaf's API group."""

    PLURAL: ClassVar[str]
    SHORT: ClassVar[str]
    COLUMNS: ClassVar[tuple[Column, ...]]
    SCALES: ClassVar[bool] = False

    api_version: Literal["sheaf.dev/v1alpha1"] = Field(
        default="sheaf.dev/v1alpha1", description="Version of the schema of this object: sheaf.dev/v1alpha1."
    )
    metadata: Metadata = Field(description="Standard metadata of the object; the name is a DNS label.")

    @property
    def name(self) -> str:
        """metadata.name, which for Models and Adapters is the served name."""
        return self.metadata.name
