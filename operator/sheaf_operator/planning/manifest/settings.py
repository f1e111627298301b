"""PodSettings: what an installation knows that a Model does not say. Images, accelerators, volumes, secrets, limits.

The chart renders it into the operator's configuration file. Everything that shapes a pod is in here or in the
PodTemplate, so the digest of the settings is a part of every template's hash: changed settings roll out like a
changed Model. Values left at their defaults are not part of the digest, so that a new field rolls nothing. Nor are the
notices: whether a pod reads them is no reason to restart an engine that serves; a pod does as it was made.
"""

import hashlib
import json
import re
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from sheaf_crds.base import ApiType, Size, Subdomain

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei|e[0-9]+)?$"
FOLDER_PATTERN = r"^(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))+/*$"
UID = 65532


def _quantity(value: object) -> str:
    text = str(value)
    if not re.fullmatch(QUANTITY_PATTERN, text):
        raise ValueError(f"{text!r} is not a quantity; write a number with a unit, such as 500m, 2 or 4Gi")
    return text


def _folder(value: object) -> str:
    text = str(value)
    if not re.fullmatch(FOLDER_PATTERN, text):
        raise ValueError(f"{value!r} is not an absolute folder below the root; write it without '.' and '..'")
    return text.rstrip("/")


Quantity = Annotated[
    str,
    BeforeValidator(_quantity),
    WithJsonSchema({"type": ["string", "number"], "pattern": QUANTITY_PATTERN, "minimum": 0}),
]
Folder = Annotated[str, BeforeValidator(_folder), WithJsonSchema({"type": "string", "pattern": FOLDER_PATTERN})]
Image = Annotated[str, Field(max_length=1024, pattern=r"^[!-~]*$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+/?$", max_length=2048)]


class Raw(ApiType):
    """A piece of Kubernetes' own API that is passed on as it is."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, max_length=253, description="Its name.")


class Volume(Raw):
    """A volume, as in a pod's spec.volumes."""


class EnvEntry(Raw):
    """An environment variable, as in a container's env: with value or valueFrom."""


class Mount(Raw):
    """A mount, as in a container's volumeMounts."""

    mount_path: Folder = Field(description="Where it appears in the container.")


class Toleration(ApiType):
    """A toleration, as in a pod's spec.tolerations."""

    key: str | None = Field(default=None, description="Key of the taint; none: every key.")
    operator: Literal["Exists", "Equal"] = Field(default="Exists", description="Whether the value counts.")
    value: str | None = Field(default=None, description="Value of the taint, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; none: every effect."
    )
    toleration_seconds: int | None = Field(default=None, ge=0, description="For how long, with effect NoExecute.")


class Resources(ApiType):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = Field(default_factory=dict, description="What the container is promised.")
    limits: dict[str, Quantity] = Field(default_factory=dict, description="What the container may not exceed.")


class Images(ApiType):
    """Container images."""

    agent: Image = Field(description="Sheaf's agent; it also fetches models and runs the emulator.")
    engine: Image = Field(default="", description="vLLM for accelerators.")
    engine_cpu: Image = Field(default="", description="vLLM for CPU; the default is `engine`.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(default="IfNotPresent", description="When to pull.")
    pull_secrets: tuple[Subdomain, ...] = Field(default=(), description="Secrets with the registry's credentials.")


class AcceleratorSettings(ApiType):
    """What a type of accelerator means on this cluster."""

    resource: str = Field(default="nvidia.com/gpu", min_length=1, description="Extended resource to ask for.")
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels of the nodes that have it; default: sheaf.dev/accelerator=TYPE."
    )
    tolerations: tuple[Toleration, ...] = Field(default=(), description="Taints of those nodes.")
    runtime_class: str | None = Field(default=None, description="RuntimeClass of the pods.")
    image: Image | None = Field(default=None, description="vLLM's image for it; default: images.engine.")
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the engine.")
    resources: Resources | None = Field(default=None, description="Of the engine; default: resources.vllm.")


class EngineResources(ApiType):
    """Requests and limits by what runs in the container."""

    vllm: Resources = Field(default_factory=Resources, description="vLLM on an accelerator.")
    vllm_cpu: Resources = Field(default_factory=Resources, description="vLLM on CPU.")
    emulator: Resources = Field(default_factory=Resources, description="The emulator.")
    agent: Resources = Field(default_factory=Resources, description="The agent.")
    fetch: Resources = Field(default_factory=Resources, description="Fetching of the model before the start.")


class ModelCache(ApiType):
    """Where fetched models are kept."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "Claim"}}, "required": ["type"]},
            "then": {"properties": {"claim": {"minLength": 1}}, "required": ["claim"]},
        }
    )

    type: Literal["EmptyDir", "HostPath", "Claim"] = Field(
        default="EmptyDir",
        description="EmptyDir: of the pod alone. HostPath: shared by the pods of a node; uid 65532 must be able to "
        "write there. Claim: shared by all pods; a volume with access mode ReadWriteMany.",
    )
    size_limit: Size | None = Field(default=None, ge=1, description="Largest size of an EmptyDir.")
    path: Folder = Field(default="/var/lib/sheaf/models", description="Folder of the node for a HostPath.")
    claim: str = Field(default="", max_length=253, description="Name of the PersistentVolumeClaim for a Claim.")

    @model_validator(mode="after")
    def _claim_is_named(self) -> "ModelCache":
        if self.type == "Claim" and not self.claim:
            raise ValueError("type Claim needs the name of the claim in `claim`")
        return self


class AdapterCache(ApiType):
    """Where an agent keeps fetched adapters: an emptyDir of the pod."""

    limit: Size = Field(default=20 * 2**30, ge=1, description="Bytes of adapters; the oldest unused go first.")


class S3Access(ApiType):
    """How s3:// sources are read."""

    secret: Subdomain | None = Field(
        default=None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if there is one); "
        "default: the identity of the pod.",
    )
    endpoint_url: Url | None = Field(default=None, description="S3 service other than AWS's own.")
    region: str | None = Field(default=None, max_length=64, description="Region of the buckets.")


class HubAccess(ApiType):
    """How hf:// sources are read."""

    secret: Subdomain | None = Field(default=None, description="Secret with the hub's token; default: no token.")
    key: str = Field(default="token", min_length=1, max_length=253, description="Key of the token in the Secret.")
    endpoint: Url | None = Field(default=None, description="Model hub other than the library's default.")


class HttpsAccess(ApiType):
    """How https:// sources are read."""

    allow_private_addresses: bool = Field(default=False, description="Whether they may be on private addresses.")
    ca_file: Folder | None = Field(
        default=None, description="PEM file of further certificate authorities; mount it by agentMounts."
    )


class NoticeSettings(ApiType):
    """Whose metadata service the agents of spot pods read for notices."""

    cloud: Literal["none", "aws", "gcp", "azure"] = Field(
        default="none",
        description="The cloud that the spot nodes belong to; none: notices come by nodes and pods alone.",
    )
    endpoint: Annotated[str, Field(pattern=r"^http://[^\s/?#@]+/?$", max_length=2048)] | None = Field(
        default=None, description="Base URL of the metadata service; default: http://169.254.169.254."
    )
    rebalance: Literal["Tell", "Replace"] = Field(
        default="Tell", description="Whether EC2's rebalance recommendation is told only, or has the pod replaced."
    )

    @property
    def agent_config(self) -> dict[str, str] | None:
        """The part of an agent's configuration; None where it reads no notices."""
        return None if self.cloud == "none" else self.to_wire()


class PodSettings(ApiType):
    """What an installation knows that a Model does not say; see the module."""

    images: Images = Field(description="Container images.")
    agent_token_secret: Subdomain = Field(description="Secret whose key `token` operator, gateway and agents share.")
    python: str = Field(default="python3", min_length=1, description="Interpreter in vLLM's image.")
    agent_python: str = Field(default="python", min_length=1, description="Interpreter in the agent's image.")
    accelerators: dict[str, AcceleratorSettings] = Field(
        default_factory=dict, description="Types of accelerator that a Model may name."
    )
    emulator_uses_accelerators: bool = Field(
        default=False, description="Whether pods of the emulator ask for a Model's accelerators too; it needs none."
    )
    resources: EngineResources = Field(default_factory=EngineResources, description="Requests and limits.")
    model_cache: ModelCache = Field(default_factory=ModelCache, description="Where fetched models are kept.")
    adapter_cache: AdapterCache = Field(default_factory=AdapterCache, description="Where adapters are kept.")
    shared_memory: Size = Field(default=2 * 2**30, ge=1, description="Size of /dev/shm of vLLM.")
    scratch_limit: Size | None = Field(default=None, ge=1, description="Size of temporary files and caches of a pod.")
    host_paths: tuple[Folder, ...] = Field(
        default=(), description="Folders of the nodes that file:// sources may lie in; mounted read-only."
    )
    s3: S3Access = Field(default_factory=S3Access, description="How s3:// sources are read.")
    hf: HubAccess = Field(default_factory=HubAccess, description="How hf:// sources are read.")
    https: HttpsAccess = Field(default_factory=HttpsAccess, description="How https:// sources are read.")
    volumes: tuple[Volume, ...] = Field(default=(), description="Further volumes of every pod.")
    engine_mounts: tuple[Mount, ...] = Field(default=(), description="Further mounts of the engine.")
    agent_mounts: tuple[Mount, ...] = Field(default=(), description="Further mounts of agent and fetch.")
    engine_env: tuple[EnvEntry, ...] = Field(
        default=(), description="Further variables of the engine; a Model's own win."
    )
    agent_env: tuple[EnvEntry, ...] = Field(default=(), description="Further variables of agent and fetch.")
    labels: dict[str, str] = Field(default_factory=dict, description="Further labels of the pods.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Further annotations of the pods.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that every node must have.")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="Taints that every pod tolerates.")
    spot_labels: dict[str, str] = Field(
        default_factory=dict, description="Labels that mark spot nodes, beside those of the clouds."
    )
    priority_class: str | None = Field(default=None, description="PriorityClass of the pods.")
    scheduler: str | None = Field(default=None, description="Scheduler other than the default.")
    service_account: str | None = Field(default=None, description="ServiceAccount; its token is never mounted.")
    run_as_user: int = Field(default=UID, ge=1, description="User and group of every process.")
    notices: NoticeSettings = Field(default_factory=NoticeSettings, description="Notices that agents read.")

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digest of everything that differs from the defaults, but for the notices; equal settings give
        equal digests."""
        content = self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"notices"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
