"""The peers of the benchmark: the Rust routers, LiteLLM's proxy, and the router of vLLM's production stack.

Those of peers.txt live in an environment of their own in the cache's `bench` folder, which `make bench-gateway` makes.
The router of the production stack is in no package registry: `SHEAF_BENCH_PRODUCTION_STACK` names its command,
`vllm-router`, where there is one. Each runs as its own project advises, with everything on that is on by default; what
is missing is left out and said. LiteLLM's settings are those of its page on production and of its own benchmark; like
every target it asks for no key.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from processes import free_port

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sheaf" / "bench"
PEERS = CACHE / "peers"
STACK_COMMAND = os.environ.get("SHEAF_BENCH_PRODUCTION_STACK", "")
_NAMED = {"sglang-router", "vllm-router", "litellm", "fastapi", "uvicorn", "uvloop", "httptools", "aiohttp"}
_RUST = {
    "sglang_router": ("cache_aware", "round_robin"),
    "vllm_router": ("cache_aware", "round_robin", "consistent_hash"),
}

Command = Callable[[Path, int, list[int]], list[str]]


@dataclass(frozen=True)
class Load:
    """What a target is asked: connections that ask all the time, streams of which the CPU time is taken (0: none),
    requests a second and streams (0: none) for latencies, and the share of the time that each part gets."""

    connections: int = 32
    streams: int = 64
    rates: tuple[int, ...] = (200,)
    paced_streams: int = 12
    share: float = 1.0


FULL = Load()
SLOW = Load(connections=8, streams=0, rates=(20, 200), share=0.5)
SLOWEST = Load(connections=8, streams=0, rates=(20,), paced_streams=4, share=0.5)
_POLICIES = {"roundrobin": SLOW, "prefixaware": replace(SLOW, rates=(200,), paced_streams=0)}


@dataclass(frozen=True)
class Target:
    """One thing to measure: `command(folder, port, engine ports)` starts it."""

    name: str
    command: Command
    load: Load = FULL


def peers() -> tuple[list[Target], list[str]]:
    """Those that can be started here, and a line for each that cannot."""
    found, missing = [], []
    installed = {path.name for path in PEERS.glob("lib/python3*/site-packages/*")}
    for package, targets in (*_rust(), ("litellm", [Target("litellm", _litellm, SLOWEST)])):
        if package in installed:
            found += targets
        else:
            missing.append(f"{package}: left out: not in {PEERS} (`make bench-gateway` installs it)")
    if shutil.which(STACK_COMMAND):
        found += [Target(f"production_stack/{policy}", _stack(policy), load) for policy, load in _POLICIES.items()]
    else:
        missing.append("production_stack: left out: SHEAF_BENCH_PRODUCTION_STACK does not name its `vllm-router`")
    return found, missing


def versions() -> dict[str, str]:
    """Of all that is installed and may answer a request."""
    stack = _installed(Path(STACK_COMMAND).parent.parent) if STACK_COMMAND else {}
    return _installed(PEERS) | {f"production_stack {name}": version for name, version in stack.items()}


def _installed(environment: Path) -> dict[str, str]:
    path = [str(one) for one in environment.glob("lib/python3*/site-packages")]
    return {one.name: one.version for one in metadata.distributions(path=path) if one.name in _NAMED}


def _rust() -> Iterator[tuple[str, list[Target]]]:
    for package, policies in _RUST.items():
        yield package, [Target(f"{package}/{policy}", _router(package, policy)) for policy in policies]


def _router(package: str, policy: str) -> Command:
    def command(_folder: Path, port: int, engine_ports: list[int]) -> list[str]:
        listen = ["--host", "127.0.0.1", "--port", str(port), "--policy", policy]
        metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        workers = ["--worker-urls", *_urls(engine_ports)]
        return [str(PEERS / "bin/python"), "-m", f"{package}.launch_router", *listen, *metrics, *workers]

    return command


def _litellm(folder: Path, port: int, engine_ports: list[int]) -> list[str]:
    models = [
        {"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "x"}}
        for url in _urls(engine_ports)
    ]
    settings = {"callbacks": [], "num_retries": 0, "request_timeout": 600}
    config, unlocked = folder / "litellm.yaml", {"dangerously_permit_weak_or_unset_master_key": True}
    whole = {"model_list": models, "litellm_settings": settings, "general_settings": unlocked}
    config.write_text(json.dumps(whole))
    advised = ["LITELLM_MODE=PRODUCTION", "LITELLM_LOG=ERROR", "LITELLM_LOCAL_MODEL_COST_MAP=True"]
    listen = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return ["env", *advised, str(PEERS / "bin/litellm"), "--config", str(config), *listen]


def _stack(policy: str) -> Command:
    def command(_folder: Path, port: int, engine_ports: list[int]) -> list[str]:
        listen = ["--host", "127.0.0.1", "--port", str(port), "--routing-logic", policy]
        backends = ["--static-backends", ",".join(_urls(engine_ports)), "--static-models", "m,m"]
        return [STACK_COMMAND, *listen, "--service-discovery", "static", *backends]

    return command


def _urls(ports: list[int]) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in ports]
