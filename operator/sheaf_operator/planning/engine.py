"""The command that starts an engine for a Model: vLLM, or the emulator that takes the same flags.

What Sheaf must own (address, served name, LoRA and KV event settings) comes from here; everything else is the user's.
Of a flag that is given twice the last one counts, and engines take abbreviated flags (`--max-l=1`): so defaults come
first, then what the user sets, then what Sheaf owns. Several accelerators are one tensor-parallel group, unless the
user divides them otherwise: an engine that is not told uses one of them and leaves the others idle.
"""

import json
from dataclasses import dataclass

from sheaf_crds import ModelSpec

MODULES = {"vllm": "vllm.entrypoints.openai.api_server", "emulator": "sheaf_engine.emulator"}
CPU_BLOCK_SIZE = 32
OWNED_ENV = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
DEFAULT_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
DIVIDED_BY_USER = ("--tensor-p", "--pi", "--data-p", "--prefill-c", "-tp", "-pp", "-dp", "-pcp")
CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class EngineEndpoints:
    """Where an engine listens; the KV event endpoints are ZeroMQ addresses, empty for none."""

    port: int
    host: str = "127.0.0.1"
    kv_events: str = ""
    kv_replay: str = ""


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """Command line and environment variables of an engine process."""

    argv: tuple[str, ...]
    env: dict[str, str]


def engine_command(
    name: str, spec: ModelSpec, model_dir: str, endpoints: EngineEndpoints, *, python: str = "python", cpu: bool
) -> EngineCommand:
    """The command for a pod of the Model `name` whose weights lie in `model_dir`.

    Args:
        name: served name of the Model.
        spec: the Model's spec.
        model_dir: directory of the fetched weights.
        endpoints: where it listens.
        python: interpreter to run it with.
        cpu: whether it runs without an accelerator.
    """
    defaults = _cpu_defaults(spec) if cpu else _parallel(spec)
    owned = ["--model", model_dir, "--served-model-name", name, "--host", endpoints.host, "--port", str(endpoints.port)]
    owned += ["--enable-prompt-tokens-details"]
    owned += _generate_flags(spec, endpoints) if spec.task == "Generate" else ["--runner", "pooling"]
    argv = (python, "-m", MODULES[spec.engine.name], *defaults, *spec.engine.args, *owned)
    return EngineCommand(argv, _environment(spec, cpu=cpu))


def lora_capacity(spec: ModelSpec) -> int:
    """Adapters that a pod of this Model may hold loaded; 0 where it takes none."""
    return spec.lora.capacity if takes_adapters(spec) else 0


def takes_adapters(spec: ModelSpec) -> bool:
    """Whether LoRA is on."""
    return spec.task == "Generate" and spec.lora.slots > 0


def _cpu_defaults(spec: ModelSpec) -> list[str]:
    return ["--block-size", str(CPU_BLOCK_SIZE)] if spec.task == "Generate" else []


def _parallel(spec: ModelSpec) -> list[str]:
    """Of alternatives one pod takes those of equal count, so the first tells it."""
    count = spec.accelerators[0].count if spec.accelerators else 1
    divided = any(argument.replace("_", "-").startswith(DIVIDED_BY_USER) for argument in spec.engine.args)
    return [] if count == 1 or divided else [f"--tensor-parallel-size={count}"]


def _generate_flags(spec: ModelSpec, endpoints: EngineEndpoints) -> list[str]:
    flags: list[str] = []
    if takes_adapters(spec):
        flags += ["--enable-lora", "--max-loras", str(spec.lora.slots), "--max-lora-rank", str(spec.lora.max_rank)]
        flags += ["--max-cpu-loras", str(max(spec.lora.slots, lora_capacity(spec)))]
    if endpoints.kv_events:
        flags += ["--kv-events-config", _kv_events_config(endpoints)]
    return flags


def _kv_events_config(endpoints: EngineEndpoints) -> str:
    config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoints.kv_events, "topic": "kv"}
    replay = {"replay_endpoint": endpoints.kv_replay} if endpoints.kv_replay else {}
    return json.dumps(config | replay)


def _environment(spec: ModelSpec, *, cpu: bool) -> dict[str, str]:
    users = {variable.name: variable.value for variable in spec.engine.env}
    return DEFAULT_ENV | (CPU_ENV if cpu else {}) | users | OWNED_ENV
