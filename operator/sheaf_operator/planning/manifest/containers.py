"""The containers of an engine pod: fetch of the model, agent beside the engine, engine.

All of them run without privileges on a read-only root; what they write lies in emptyDirs. The agent is a sidecar of
Kubernetes' own kind (an init container that restarts always): it is there before the engine starts and after it has
ended, so the engine's preStop hook, which the agent puts into the shared folder, can always ask it to drain.
"""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

from sheaf_crds import ModelSpec

from sheaf_operator.planning.actions import PodTemplate
from sheaf_operator.planning.engine import OWNED_ENV, EngineEndpoints, engine_command
from sheaf_operator.planning.manifest.accelerators import engine_resources, first
from sheaf_operator.planning.manifest.refusal import engine_image
from sheaf_operator.planning.manifest.settings import EnvEntry, Mount, PodSettings, Resources
from sheaf_operator.planning.manifest.source import RUN_DIR, Weights

ENGINE_PORT, AGENT_PORT, KV_PORT, REPLAY_PORT = 8000, 8001, 5557, 5558
CONFIG_DIR = "/etc/sheaf"
CONFIG_FILE = f"{CONFIG_DIR}/agent.json"
TOKEN_FILE = f"{CONFIG_DIR}/token"
ADAPTERS_DIR = "/var/lib/sheaf/adapters"
HOME = "/tmp"  # noqa: S108 - an emptyDir of the container's own
HOOK = f"{RUN_DIR}/drain.py"
FETCH, AGENT, ENGINE = "fetch-model", "agent", "engine"
CONFIG, RUN, ADAPTERS, SHM = "config", "run", "adapters", "shm"
SCRATCH, AGENT_SCRATCH = "scratch", "agent-scratch"
PROBE_PERIOD = 2

# Whatever a library asks for its caches, it finds a folder that can be written and a user that has a name.
BASE_ENV = {
    "HOME": HOME,
    "USER": "sheaf",
    "LOGNAME": "sheaf",
    "TMPDIR": HOME,
    "XDG_CACHE_HOME": f"{HOME}/.cache",
    "XDG_CONFIG_HOME": f"{HOME}/.config",
    "HF_HOME": f"{HOME}/.cache/huggingface",
    "VLLM_CACHE_ROOT": f"{HOME}/.cache/vllm",
    "TORCHINDUCTOR_CACHE_DIR": f"{HOME}/.cache/inductor",
    "TRITON_CACHE_DIR": f"{HOME}/.cache/triton",
    "NUMBA_CACHE_DIR": f"{HOME}/.cache/numba",
}

Container = dict[str, Any]


def fetch_container(weights: Weights, settings: PodSettings) -> Container:
    """Brings the weights before anything else starts; its one line of error is the container's last message."""
    argv = [settings.agent_python, "-m", "sheaf_engine.agent", *weights.fetch]
    mounts = [_mount(RUN, RUN_DIR), *weights.mounts, _mount(AGENT_SCRATCH, HOME)]
    env = _env(BASE_ENV, credentials(settings), settings.agent_env)
    return _container(FETCH, settings.images.agent, argv, env, mounts, settings, settings.resources.fetch) | {
        "volumeMounts": _all_mounts(mounts, settings.agent_mounts)
    }


def agent_container(weights: Weights, settings: PodSettings) -> Container:
    """Loads adapters, tells what is so, drains; a sidecar."""
    argv = [settings.agent_python, "-m", "sheaf_engine.agent", "--config", CONFIG_FILE]
    mounts = [_mount(RUN, RUN_DIR), _mount(ADAPTERS, ADAPTERS_DIR), *_read_only(weights.mounts)]
    mounts += [_mount(CONFIG, CONFIG_DIR, read_only=True), _mount(AGENT_SCRATCH, HOME)]
    mounts += [_mount(host_volume(place), root, read_only=True) for place, root in enumerate(settings.host_paths)]
    env = _env(BASE_ENV, credentials(settings), settings.agent_env)
    return _container(AGENT, settings.images.agent, argv, env, mounts, settings, settings.resources.agent) | {
        "restartPolicy": "Always",
        "ports": [{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/healthz", "agent", 1, failures=60),
        "readinessProbe": _probe("/readyz", "agent", PROBE_PERIOD, failures=2),
        "livenessProbe": _probe("/healthz", "agent", 10, failures=6),
        "volumeMounts": _all_mounts(mounts, settings.agent_mounts),
    }


def engine_container(template: PodTemplate, weights: Weights, settings: PodSettings) -> Container:
    """Serves the model; before it is stopped, the pod drains."""
    spec = template.spec
    python = settings.agent_python if spec.engine.name == "emulator" else settings.python
    at = EngineEndpoints(ENGINE_PORT, "0.0.0.0", f"tcp://*:{KV_PORT}", f"tcp://*:{REPLAY_PORT}")
    command = engine_command(
        template.model, spec, weights.model_dir, at, python=python, cpu=first(spec, settings) is None
    )
    mounts = [_mount(RUN, RUN_DIR, read_only=True), _mount(ADAPTERS, ADAPTERS_DIR, read_only=True)]
    mounts += [*_read_only(weights.mounts), _mount(SCRATCH, HOME)]
    mounts += [_mount(SHM, "/dev/shm")] if spec.engine.name == "vllm" else []  # noqa: S108 - the container's own
    argv = [literal(word) for word in command.argv]
    env = _engine_env(spec, command.env, settings)
    base = _container(
        ENGINE, engine_image(spec, settings), argv, env, mounts, settings, engine_resources(spec, settings)
    )
    return base | {
        "ports": _engine_ports(),
        "startupProbe": _probe("/health", "engine", PROBE_PERIOD, failures=ceil(spec.startup_timeout / PROBE_PERIOD)),
        "livenessProbe": _probe("/health", "engine", 10, failures=6),
        "lifecycle": {"preStop": {"exec": {"command": [python, "-I", HOOK, f"{spec.drain_timeout:g}"]}}},
        "volumeMounts": _all_mounts(mounts, settings.engine_mounts),
    }


def host_volume(place: int) -> str:
    """Name of the volume of a folder of the node."""
    return f"host-{place}"


def literal(text: str) -> str:
    """The text as Kubernetes must be given it so that it expands nothing: $(VAR) in arguments and values."""
    return text.replace("$", "$$")


def credentials(settings: PodSettings) -> dict[str, dict[str, Any]]:
    """Environment variables with the credentials of stores, by reference to their Secrets."""
    entries: dict[str, dict[str, Any]] = {}
    if settings.hf.secret:
        entries["HF_TOKEN"] = _secret(settings.hf.secret, settings.hf.key)
    if settings.s3.secret:
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            entries[key] = _secret(settings.s3.secret, key)
        entries["AWS_SESSION_TOKEN"] = _secret(settings.s3.secret, "AWS_SESSION_TOKEN", optional=True)
    if settings.s3.region:
        entries["AWS_DEFAULT_REGION"] = {"value": literal(settings.s3.region)}
    return entries


def _secret(name: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    reference = {"name": name, "key": key} | ({"optional": True} if optional else {})
    return {"valueFrom": {"secretKeyRef": reference}}


def _engine_env(spec: ModelSpec, wanted: Mapping[str, str], settings: PodSettings) -> list[dict[str, Any]]:
    """Defaults give way to the accelerator's, these to the installation's, and these to the Model's own."""
    firm = {variable.name for variable in spec.engine.env} | set(OWNED_ENV)
    soft = BASE_ENV | {name: value for name, value in wanted.items() if name not in firm}
    known = first(spec, settings)
    env = {entry["name"]: entry for entry in _env(soft | (known.env if known else {}), {}, settings.engine_env)}
    last = {name: {"name": name, "value": literal(wanted[name])} for name in wanted if name in firm}
    return list((env | last).values())


def _env(
    plain: Mapping[str, str], references: Mapping[str, dict[str, Any]], extra: Iterable[EnvEntry]
) -> list[dict[str, Any]]:
    entries = {name: {"name": name, "value": literal(value)} for name, value in plain.items()}
    entries |= {name: {"name": name, **entry} for name, entry in references.items()}
    entries |= {entry.name: entry.to_wire() for entry in extra}
    return list(entries.values())


def _container(
    name: str,
    image: str,
    argv: list[str],
    env: list[dict[str, Any]],
    mounts: list[dict[str, Any]],
    settings: PodSettings,
    resources: Resources,
) -> Container:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "command": argv,
        "env": env,
        "resources": {kind: value for kind, value in resources.to_wire().items() if value},
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
    }


def _engine_ports() -> list[dict[str, Any]]:
    named = (("engine", ENGINE_PORT), ("kv-events", KV_PORT), ("kv-replay", REPLAY_PORT))
    return [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in named]


def _probe(path: str, port: str, period: int, *, failures: int) -> dict[str, Any]:
    get = {"path": path, "port": port, "scheme": "HTTP"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": max(1, failures)}


def _mount(name: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})


def _read_only(mounts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**mount, "readOnly": True} for mount in mounts]


def _all_mounts(own: list[dict[str, Any]], extra: Iterable[Mount]) -> list[dict[str, Any]]:
    """Mounts by path: what the installation mounts at the same place wins."""
    return list({mount["mountPath"]: mount for mount in (*own, *(mount.to_wire() for mount in extra))}.values())
