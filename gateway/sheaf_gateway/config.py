"""The gateway's configuration: one JSON file, each top-level text field also a flag. Secrets are named by
file path only."""

from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, Field, ValidationError
from pydantic.alias_generators import to_camel
from sheaf_crds import ApiType
from sheaf_crds.base import Duration, Size

_CLUSTER_FLAGS = frozenset({"namespace", "kubeconfig"})


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line that names the field."""


def parse_listen(text: str) -> tuple[str | None, int]:
    """Host (None: every interface) and port of `HOST:PORT`, `[V6]:PORT` or `:PORT`.

    Raises:
        ValueError: It is none of these.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8000")
    return host.removeprefix("[").removesuffix("]") or None, int(port)


def _listen(text: str) -> str:
    parse_listen(text)
    return text


class Limits(ApiType):
    """Bounds of what callers may send and hold."""

    max_body: Size = Field(default=16 * 2**20, ge=1024, description="Largest request body.")
    max_connections: int = Field(default=16_384, ge=1, description="Open client connections.")
    max_json_depth: int = Field(default=64, ge=4, le=512, description="Levels of JSON in a request body.")
    max_attempts: int = Field(default=3, ge=1, le=10, description="Attempts of one request.")
    max_inflight_per_pod: int = Field(default=256, ge=1, description="Requests at once on a ready pod; more wait.")
    max_held: int = Field(default=256, ge=0, description="Requests held for a Model that has no ready pod.")
    max_decisions: int = Field(default=4_096, ge=1, description="Decision records held.")
    max_continuations: int = Field(default=8, ge=0, le=100, description="Moves of one stream; 0: none is continued.")
    max_journal: Size = Field(default=2**20, ge=1024, description="Journal of one stream.")
    max_journals: Size = Field(default=256 * 2**20, ge=1024, description="Journals of all streams.")
    max_replay: int = Field(default=1024, ge=0, description="Tokens that a continuation may have to generate again.")
    starting_per_pod: int = Field(default=16, ge=1, description="Continuations that start at once on a ready pod.")
    max_warmed: int = Field(default=16, ge=0, le=256, description="Prefixes a replacement is warmed with; 0: none.")
    max_warmed_tokens: int = Field(default=65_536, ge=0, description="Tokens that a replacement is warmed with.")
    max_remembered: Size = Field(default=32 * 2**20, ge=0, description="Requests kept to know the hottest prefixes.")
    max_prefix_blocks: int = Field(default=262_144, ge=1, description="Blocks of 256 bytes in the prefix index.")


class Times(ApiType):
    """How long things may take."""

    connect: Duration = Field(default=2.0, gt=0, description="An engine to accept a connection.")
    first_byte: Duration = Field(default=600.0, gt=0, description="An engine to begin its answer.")
    idle: Duration = Field(default=120.0, gt=0, description="An engine between two bytes of an answer.")
    stall: Duration = Field(default=30.0, gt=0, description="An engine between two bytes of a stream that can move.")
    continuation: Duration = Field(default=30.0, gt=0, description="A stream that lost its engine to wait for another.")
    warming: Duration = Field(default=10.0, gt=0, description="A replacement to be warmed before it takes requests.")
    adapter_load: Duration = Field(default=120.0, gt=0, description="A pod to load an adapter.")
    keep_alive: Duration = Field(default=75.0, gt=0, description="A client between two requests.")
    hold: Duration = Field(default=120.0, ge=0, description="A request to be held for a Model without a ready pod.")
    lame_duck: Duration = Field(
        default=0.0, ge=0, description="To go on serving, no longer ready, before it stops listening."
    )
    shutdown: Duration = Field(default=30.0, ge=0, description="Requests under way to end when the gateway stops.")


class KubernetesConfig(ApiType):
    """Where the fleet is read from a Kubernetes API server."""

    enabled: bool = Field(default=True, description="Read the fleet from the API server; fleetFile is its last copy.")
    namespace: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="Namespace that is read; default: the pod's own, or the one of the kubeconfig's context.",
    )
    kubeconfig: Path | None = Field(default=None, description="Kubeconfig file; default: the pod's service account.")


class SharedLimitsConfig(ApiType):
    """Where gateways count together what tenants and keys use."""

    url_file: Path = Field(description="File with the URL of the Redis: redis://, rediss:// or unix://.")
    fail_open: bool = Field(
        default=True,
        description="While Redis is away: true counts in each gateway alone, false refuses limited requests with 503.",
    )
    timeout: Duration = Field(default=0.25, gt=0, le=10, description="Redis to answer.")
    prefix: str = Field(default="sheaf", min_length=1, max_length=64, description="Begins the name of every key.")


class PeersConfig(ApiType):
    """How replicas tell each other of their requests, over UDP."""

    listen: Annotated[str, AfterValidator(_listen)] = Field(default=":8002", description="Address to listen on.")
    dns: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Names or addresses of the others, HOST or HOST:PORT; resolved again and again.",
    )
    pods: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Labels of the gateways' own pods, as in kubectl get -l.",
    )
    port: int | None = Field(default=None, ge=1, le=65_535, description="Their port; default: the one listened on.")


class GatewayConfig(ApiType):
    """Everything that a gateway process needs to know."""

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:8000"
    fleet_file: Path
    agent_token_file: Path | None = None
    keys_file: Path | None = None
    salt_secret_file: Path | None = None
    shared_limits: SharedLimitsConfig | None = None
    kubernetes: KubernetesConfig | None = None
    workers: int = Field(default=1, ge=1, le=64, description="Processes that serve together on one port.")
    peers: PeersConfig | None = None
    access_log: bool = True
    limits: Limits = Field(default_factory=Limits)
    times: Times = Field(default_factory=Times)


def load_config(path: Path | None, flags: dict[str, Any]) -> GatewayConfig:
    """The configuration of a file with flags (field name to value, None: not given) laid over it.

    Raises:
        ConfigError: It cannot be used.
    """
    document = _document(path) if path is not None else {}
    given = {to_camel(name): value for name, value in flags.items() if value is not None}
    try:
        return GatewayConfig.model_validate(_laid_over(document, given))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path or 'flags'}: {where}: {first['msg']}") from None


def _laid_over(document: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    cluster = {name: given.pop(name) for name in _CLUSTER_FLAGS & given.keys()}
    declared = document.get("kubernetes") or {}
    if cluster and isinstance(declared, dict):
        given["kubernetes"] = {**declared, "enabled": True, **cluster}
    return {**document, **given}


def _document(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return document
