"""The command lines of a pod's processes. Tests put other programs in their place."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import orjson
from sheaf_crds import ModelSpec
from sheaf_operator.planning import EngineEndpoints, PodTemplate, engine_command
from sheaf_operator.planning.engine import lora_capacity

from sheaf.local.layout import Layout, write_private
from sheaf.local.process import Command

MODEL_DIR_LINE = "model-dir "


@dataclass(frozen=True, slots=True)
class PodAddresses:
    """Where the two processes of a pod listen."""

    engine: EngineEndpoints
    agent_port: int

    @property
    def engine_url(self) -> str:
        """Base URL of the engine."""
        return f"http://{self.engine.host}:{self.engine.port}"

    @property
    def agent_url(self) -> str:
        """Base URL of the agent."""
        return f"http://127.0.0.1:{self.agent_port}"


class Programs:
    """The real programs: Sheaf's agent, and vLLM or the emulator."""

    def __init__(self, layout: Layout, marks: Mapping[str, str]) -> None:
        self.layout, self.marks = layout, marks

    def needs_fetch(self, spec: ModelSpec) -> bool:
        """Whether the weights have to be brought, or why they are missing has to be said.

        A folder here is used as it is. The emulator goes without weights, but a path that is named must be there.
        """
        here = spec.source.startswith("file://")
        return folder_here(spec.source) is None if here else spec.engine.name != "emulator"

    def fetch(self, pod: str, spec: ModelSpec) -> Command:
        """Brings the weights; its last line says where they are."""
        argv = [sys.executable, "-m", "sheaf_engine.agent", "fetch", "--source", spec.source]
        argv += ["--to", str(self.layout.models), "--allow-file-root", "/"]
        for flag, variable in (("--s3-endpoint-url", "AWS_ENDPOINT_URL"), ("--hf-endpoint", "HF_ENDPOINT")):
            argv += [flag, os.environ[variable]] if os.environ.get(variable) else []
        return Command(tuple(argv), self.layout.log(pod, "fetch"), self._env(pod))

    def engine(
        self, pod: str, template: PodTemplate, model_dir: str, at: EngineEndpoints, gpus: Mapping[str, str]
    ) -> Command:
        """Serves the model."""
        command = engine_command(template.model, template.spec, model_dir, at, python=sys.executable, cpu=not gpus)
        return Command(command.argv, self.layout.log(pod, "engine"), {**command.env, **gpus, **self._env(pod)})

    def agent(self, pod: str, template: PodTemplate, model_dir: str, addresses: PodAddresses) -> Command:
        """Loads adapters; its configuration file is written here."""
        file = self.layout.configs / f"{pod}.json"
        write_private(file, orjson.dumps(self._agent_config(pod, template, model_dir, addresses)).decode())
        argv = (sys.executable, "-m", "sheaf_engine.agent", "--config", str(file))
        return Command(argv, self.layout.log(pod, "agent"), self._env(pod))

    def _agent_config(
        self, pod: str, template: PodTemplate, model_dir: str, addresses: PodAddresses
    ) -> dict[str, object]:
        spec = template.spec
        config: dict[str, object] = {
            "model": template.model,
            "engineUrl": addresses.engine_url,
            "listen": f"127.0.0.1:{addresses.agent_port}",
            "tokenFile": str(self.layout.token_file),
            "adapterDir": str(self.layout.adapters / pod),
            "capacity": lora_capacity(spec),
            "maxRank": spec.lora.max_rank,
            "allowedFileRoots": ["/"],
            "startupTimeout": spec.startup_timeout,
        }
        return config | ({"modelDir": model_dir} if Path(model_dir).is_absolute() else {}) | _from_environment()

    def _env(self, pod: str) -> dict[str, str]:
        return {**self.marks, "SHEAF_POD": pod}


def folder_here(source: str) -> str | None:
    """The folder of a file:// source where it holds a model; None for every other source."""
    if not source.startswith("file:///"):
        return None
    folder = Path(unquote(source.removeprefix("file://"))).resolve()
    return str(folder) if (folder / "config.json").is_file() else None


def model_dir_in(lines: tuple[str, ...]) -> str | None:
    """The directory that a fetch reported."""
    found = [line.removeprefix(MODEL_DIR_LINE) for line in lines if line.startswith(MODEL_DIR_LINE)]
    return found[-1].strip() if found else None


def _from_environment() -> dict[str, str]:
    """Settings of the libraries behind s3:// and hf:// that users know as environment variables."""
    known = {"s3EndpointUrl": "AWS_ENDPOINT_URL", "hfEndpoint": "HF_ENDPOINT", "hfTokenFile": "HF_TOKEN_PATH"}
    return {key: os.environ[variable] for key, variable in known.items() if os.environ.get(variable)}
