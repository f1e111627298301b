"""The agent's configuration file: one JSON object, camelCase; secrets are named by file path only."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from sheaf_crds.base import ApiType, Name

from sheaf_engine.agent.errors import ConfigError
from sheaf_engine.notices.clouds import ENDPOINT, CloudName

SHORTEST_TOKEN = 16
LARGEST_FILE = 2**20

Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]-]*:[0-9]{1,5}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+/?$")]
LocalUrl = Annotated[str, Field(pattern=r"^http://[^\s/?#@]+/?$")]


class NoticesConfig(ApiType):
    """Whose metadata service is read for notices that the machine will go."""

    cloud: CloudName = Field(description="The cloud that the machine belongs to.")
    endpoint: LocalUrl = Field(default=ENDPOINT, description="Base URL of its metadata service; plain http.")
    rebalance: Literal["Tell", "Replace"] = Field(
        default="Tell", description="Whether a recommendation to leave is told only, or has the pod replaced."
    )


class AgentConfig(ApiType):
    """Everything that an agent is told at its start."""

    model: Name = Field(description="Served name of the base model.")
    engine_url: LocalUrl = Field(description="Base URL of the engine beside the agent; plain http on loopback.")
    listen: Address = Field(description="HOST:PORT of the agent's own API; port 0 takes a free one.")
    token_file: Path = Field(description="File that holds the bearer token of operator and gateway.")
    adapter_dir: Path = Field(description="Folder that holds fetched adapters; the agent owns it.")
    model_dir: Path | None = Field(default=None, description="Folder of the base model, for its config.json.")
    run_dir: Path | None = Field(
        default=None,
        description="Folder of this pod, shared with the engine, for the preStop hook and the catalog taken last.",
    )
    cache_limit: int = Field(default=20 * 2**30, ge=1, description="Bytes that adapter_dir may hold.")
    capacity: int = Field(default=32, ge=0, le=10_000, description="Adapters loaded in the engine at once.")
    max_rank: int = Field(default=16, ge=1, le=512, description="Highest rank that the engine accepts.")
    allowed_file_roots: tuple[Path, ...] = Field(default=(), description="Folders that file:// sources may lie in.")
    allow_private_addresses: bool = Field(
        default=False, description="Whether https:// sources may be on private, loopback or link-local addresses."
    )
    startup_timeout: float = Field(default=900.0, gt=0, description="Seconds the engine may take to start.")
    catalog_patience: float = Field(
        default=15.0, ge=0, le=3600, description="Seconds that a ready engine waits for its first catalog."
    )
    load_timeout: float = Field(default=120.0, gt=0, le=3600, description="Seconds that one load may take.")
    fetch_timeout: float = Field(default=900.0, gt=0, le=86_400, description="Seconds that one fetch may take.")
    poll_interval: float = Field(default=1.0, ge=0.01, le=60, description="Seconds between looks at the engine.")
    s3_endpoint_url: Url | None = Field(default=None, description="S3 service other than AWS's own.")
    hf_endpoint: Url | None = Field(default=None, description="Model hub other than the library's default.")
    hf_token_file: Path | None = Field(default=None, description="File that holds the hub's token.")
    https_ca_file: Path | None = Field(default=None, description="PEM file of further certificate authorities.")
    notices: NoticesConfig | None = Field(default=None, description="Reading of notices; none: they are not read.")

    @field_validator("adapter_dir", "model_dir", "run_dir", "allowed_file_roots")
    @classmethod
    def _absolute(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None and not path.is_absolute():
                raise ValueError(f"{path} is not absolute; write the whole path")
        return value

    @field_validator("listen")
    @classmethod
    def _port_exists(cls, value: str) -> str:
        if int(value.rpartition(":")[2]) > 65535:
            raise ValueError(f"{value} has a port above 65535")
        return value

    def own_url(self, port: int) -> str:
        """Where the agent is reached from within its pod when it listens on that port."""
        host = self.address[0]
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def read_small(path: Path, what: str) -> bytes:
    """The content of a small file; ConfigError where it cannot be read or is larger than 1 MiB."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{what} {path} is larger than 1 MiB; it is not what it should be")
    return content


def load_config(path: Path) -> AgentConfig:
    """The configuration in that file; ConfigError names the field and what is wrong with it."""
    try:
        return AgentConfig.model_validate_json(read_small(path, "configuration file"))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_error(error)}") from error


def first_error(error: ValidationError) -> str:
    """The first of pydantic's errors as `field: what is wrong`, and how many more there are."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}: {first['msg']}{more}" if field else f"{first['msg']}{more}"


def read_token(path: Path) -> bytes:
    """The bearer token in that file, without surrounding white space."""
    token = read_small(path, "token file").strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or any(byte <= 0x20 for byte in token):
        raise ConfigError(f"token file {path} must hold one word of at least {SHORTEST_TOKEN} ASCII characters")
    return token
