"""The operator's configuration: one JSON or YAML file, checked as a whole before anything starts."""

import os
import socket
import uuid
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ConfigDict, Field, ValidationError
from sheaf_crds import ApiType
from sheaf_crds.base import Name

from sheaf_operator.planning.autoscaling.facts import Speed
from sheaf_operator.planning.manifest.settings import PodSettings
from sheaf_operator.planning.market.settings import MarketSettings

LARGEST = 4 * 2**20
PROBLEMS_SHOWN = 5


class ConfigError(Exception):
    """The configuration cannot be used; one line that says why and how to mend it."""


class SpeedSettings(ApiType):
    """How fast one replica is: a timing profile (docs/timing-model.md), of which this is what autoscaling needs."""

    model_config = ConfigDict(extra="ignore", alias_generator=None)

    step_overhead_s: Annotated[float, Field(gt=0, le=60)]
    prefill_token_s: Annotated[float, Field(ge=0, le=60)]
    prefill_attention_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    decode_sequence_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    kv_token_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    max_num_batched_tokens: Annotated[int, Field(ge=1)] = 2048
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    block_size: Annotated[int, Field(ge=1)] = 16
    num_blocks: Annotated[int, Field(ge=1)]

    @property
    def speed(self) -> Speed:
        """As decisions take it."""
        return Speed(
            self.step_overhead_s,
            self.prefill_token_s,
            self.prefill_attention_s,
            self.decode_sequence_s,
            self.kv_token_s,
            self.max_num_batched_tokens,
            self.max_num_seqs,
            self.num_blocks * self.block_size,
        )


class OperatorConfig(ApiType):
    """What the operator is told."""

    namespace: Name | None = Field(default=None, description="Namespace to serve; default: the pod's own.")
    identity: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="Name in the Lease; must be another one for each process. Default: made up."
    )
    lease_name: Name = Field(default="sheaf-operator", description="Name of the Lease that the one writer holds.")
    listen: Annotated[str, Field(pattern=r"^[^\s]*:[0-9]{1,5}$", max_length=300)] = Field(
        default=":8080", description="HOST:PORT of /metrics, /healthz and /readyz; without a host: every address."
    )
    agent_token_file: Path = Field(description="File that holds the bearer token of the agents.")
    pods: PodSettings = Field(description="What this installation puts into pods.")
    market: MarketSettings = Field(
        default_factory=MarketSettings,
        description="What is known of zones and prices; changes roll no pods.",
    )
    speeds: Annotated[dict[str, SpeedSettings], Field(max_length=64)] = Field(
        default_factory=dict,
        description="Timing profile of a replica by accelerator type, `cpu` for none; measured ones scale better.",
    )

    @property
    def address(self) -> tuple[str | None, int]:
        """Host (None: every address) and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]") or None, int(port)


def read_config(path: Path) -> OperatorConfig:
    """The configuration in a file; ConfigError says in one line what is wrong with it."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: is larger than {LARGEST} bytes; that is no configuration of the operator")
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file that can be read with --config") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is neither JSON nor YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no mapping of settings; write agentTokenFile: and pods: at least")
    try:
        config = OperatorConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_problems(error)}") from error
    return _checked(config, path)


def _checked(config: OperatorConfig, path: Path) -> OperatorConfig:
    if not 0 <= config.address[1] <= 65535:
        raise ConfigError(f"{path}: listen: {config.listen} names no port; write one from 1 to 65535")
    token = config.agent_token_file
    try:
        empty = not token.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: agentTokenFile: {token} cannot be read ({error}); mount the agents' Secret"
        ) from error
    if empty:
        raise ConfigError(f"{path}: agentTokenFile: {token} is empty; write a token into the agents' Secret")
    return config


def _problems(error: ValidationError) -> str:
    found = [(".".join(map(str, item["loc"])), item) for item in error.errors(include_url=False, include_input=False)]
    said = [f"{field}: {_words(item['type'], item['msg'])}" for field, item in found[:PROBLEMS_SHOWN]]
    more = f"; and {len(found) - PROBLEMS_SHOWN} more" if len(found) > PROBLEMS_SHOWN else ""
    return "; ".join(said) + more


def _words(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "is no setting; remove it or correct its name"
    if kind == "missing":
        return "is missing; add it"
    return message.removeprefix("Value error, ")


def own_identity() -> str:
    """A name that no other process has: the pod's or host's, and something random."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"[:128]
