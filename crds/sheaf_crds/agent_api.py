"""The wire types of the agent's HTTP API: what operator and gateway say to the agent in a pod, and what it answers.

    PUT  /v1/catalog              Catalog        every adapter that this pod may serve; `pinned` ones are kept loaded
    POST /v1/adapters/NAME/load   -> AdapterState   load one of the catalog now (a request came for it); waits until it
                                  is resident
    GET  /v1/state?after=VERSION&wait=SECONDS -> AgentState   at once if the version is newer, otherwise when it changes
                                  or the wait ends
    GET  /v1/vocabulary           -> Vocabulary   what tokens and requests are in bytes; 404 where it is not known
    POST /v1/drain                Drain -> AgentState
    GET  /healthz /readyz /metrics               no token needed

Every other call needs `Authorization: Bearer TOKEN`. The gateway names adapters only; sources come from the operator's
catalog. Errors are `{"error": {"code", "message"}}` with a fitting status.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sheaf_crds.adapter import AdapterSource
from sheaf_crds.base import ApiType, Digest, Name


class CatalogEntry(ApiType):
    """An adapter that the pod may serve."""

    name: Name
    source: AdapterSource
    digest: Digest | None = None
    rank: int | None = None
    size_limit: int = Field(default=2 * 2**30, ge=1, description="Bytes.")
    priority: int = 0
    pinned: bool = Field(default=False, description="Keep it loaded, and load it again after the engine restarts.")


class Catalog(ApiType):
    """The whole set of adapters that the pod may serve; it replaces the one before."""

    generation: int = Field(default=0, ge=0, description="Older catalogs than the last one taken are refused with 409.")
    adapters: Annotated[tuple[CatalogEntry, ...], Field(max_length=100_000)] = ()


class AdapterState(ApiType):
    """What is true of one adapter in this pod."""

    model_config = ConfigDict(extra="ignore")

    name: str
    state: Literal["Resident", "Loading", "Failed"]
    digest: str = Field(default="", description="Digest of the files loaded, also where none was declared.")
    rank: int = 0
    size_bytes: int = 0
    activity: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of about the last minute in which the engine had requests of it, in steps of 0.1.",
    )
    reason: str = Field(default="", description="CamelCase word for programs, where it failed.")
    message: str = Field(default="", description="What is wrong and how to mend it.")
    retry_at: float = Field(default=0.0, description="Unix seconds of the next attempt; 0: no attempt is planned.")


class EngineLoad(ApiType):
    """The engine's own figures, read from its metrics."""

    model_config = ConfigDict(extra="ignore")

    running: int = 0
    waiting: int = 0
    kv_usage: float = Field(default=0.0, ge=0.0, le=1.0, description="Share of KV blocks in use.")


class AgentNotice(ApiType):
    """The cloud's metadata service says that the pod's machine will go."""

    model_config = ConfigDict(extra="ignore")

    source: str = Field(max_length=64, description="The cloud whose metadata says so.")
    reason: str = Field(max_length=64, description="CamelCase word for programs.")
    message: str = Field(default="", max_length=1024, description="For people.")
    deadline: float = Field(
        default=0.0, ge=0.0, le=2.0**53, description="Unix seconds when the machine goes; 0: nobody says, or not soon."
    )
    advisory: bool = Field(default=False, description="It may go soon, but nothing says that it will.")


class AgentState(ApiType):
    """What is really so in this pod, verified against the engine."""

    model_config = ConfigDict(extra="ignore")

    version: int = Field(default=0, description="Grows with every change.")
    model: str = ""
    engine: Literal["Starting", "Ready", "Unhealthy", "Stopped"] = "Starting"
    engine_epoch: int = Field(
        default=0, description="Grows with every start of the engine: caches of older epochs are gone."
    )
    engine_version: str = ""
    kernels: str = Field(default="stock", description="LoRA kernels in use: stock or sheaf.")
    continues: bool = Field(
        default=False, description="Sheaf's logits processor is in the engine: continued sampling is exact."
    )
    max_model_len: int = 0
    block_size: int = 0
    vocabulary: str = Field(default="", max_length=64, description="Digest of GET /v1/vocabulary; empty: it has none.")
    kv_tokens: int = Field(default=0, ge=0, description="Tokens that the engine's KV cache holds; 0: not known.")
    capacity: int = Field(default=0, description="Adapters that may be loaded at once.")
    draining: bool = False
    drain_deadline: float = Field(default=0.0, description="Unix seconds by which the pod goes; 0: it stays.")
    drains_until_restart: bool = Field(
        default=False, description="Only the engine is being stopped: the drain ends when it has started anew."
    )
    notice: AgentNotice | None = Field(
        default=None, description="What the cloud's metadata service says, where the agent reads it."
    )
    catalog_generation: int = 0
    load: EngineLoad = Field(default_factory=EngineLoad)
    adapters: tuple[AdapterState, ...] = ()


class Rendering(ApiType):
    """How the engine renders requests to text, learned from its chat template and checked against it."""

    model_config = ConfigDict(extra="ignore")

    text: str = Field(default="", description="What the tokenizer puts before a plain prompt.")
    begins: dict[str, str] = Field(
        default_factory=dict,
        description="What stands before the content of a first message, by its role; empty: it could not be learned.",
    )
    gaps: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="What stands between two contents, by the roles of the first and the second."
    )
    ends: dict[str, str] = Field(
        default_factory=dict,
        description="What follows the content of the last message, by its role; asks for the answer.",
    )
    strip: bool = Field(default=False, description="White space around contents is taken away.")
    problem: str = Field(default="", description="Why it could not be learned.")


class Vocabulary(ApiType):
    """What the tokens of the base model stand for, in bytes, and how requests are rendered."""

    model_config = ConfigDict(extra="ignore")

    digest: str = Field(max_length=64)
    tokens: str = Field(
        max_length=64 * 2**20,
        description="Base64 of, for each token from 0: the count of its bytes (16 bits, big endian), then they.",
    )
    rendering: Rendering = Field(default_factory=Rendering)


class Drain(ApiType):
    """A request to finish by a deadline."""

    deadline: float = Field(ge=0, description="Seconds from now within which running requests may finish.")
    reason: str = Field(default="", max_length=1024)
    until_restart: bool = Field(
        default=False, description="Only the engine is being stopped, and the pod may stay: drain until it starts anew."
    )
