"""What is measured: Sheaf's gateway as configured by default, nginx, and the Rust routers where they are installed.

Peers (peers.txt) live in an environment of their own in the cache's `bench` folder, which `make bench-gateway` makes;
those that are missing are left out. Every target gets the same engines and runs on core 0 alone.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stub import REPLY

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sheaf" / "bench"
PEERS = CACHE / "peers" / "bin"
GATEWAY_CORE, OTHER_CORE = "0", "1"
_STARTED_S = 30.0

Command = Callable[[Path, int, list[int]], list[str]]


@dataclass(frozen=True)
class Target:
    """One thing to measure: `command(folder, port, engine ports)` starts it."""

    name: str
    command: Command


def targets() -> list[Target]:
    """Those that can be started here."""
    found = [Target("sheaf", _sheaf)]
    if shutil.which("nginx"):
        found.append(Target("nginx", _nginx_proxy))
    for package, policies in (
        ("sglang_router", ("cache_aware", "round_robin")),
        ("vllm_router", ("cache_aware", "round_robin", "consistent_hash")),
    ):
        if list(PEERS.parent.glob(f"lib/python3*/site-packages/{package}")):
            found += [Target(f"{package}/{policy}", _router(package, policy)) for policy in policies]
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(target: Target, folder: Path, engines: list[int]) -> Iterator[tuple[int, int]]:
    """Its process id and port, once it listens."""
    port = free_port()
    with process(target.command(folder, port, engines), folder / "target.log", GATEWAY_CORE) as pid:
        wait_for(port)
        yield pid, port


@contextmanager
def engines(folder: Path, pace_ms: float | None) -> Iterator[list[int]]:
    """Two engines: of whole replies, or of streams with a chunk each `pace_ms`."""
    ports = [free_port(), free_port()]
    here = Path(__file__).parent
    commands = (
        [_nginx(folder / "engines", _replies(ports))]
        if pace_ms is None
        else [[sys.executable, str(here / "stub.py"), str(port), str(pace_ms)] for port in ports]
    )
    with process(commands[0], folder / "engine.log", OTHER_CORE), _maybe(commands[1:], folder):
        for port in ports:
            wait_for(port)
        yield ports


@contextmanager
def _maybe(commands: list[list[str]], folder: Path) -> Iterator[None]:
    if not commands:
        yield
        return
    with process(commands[0], folder / "engine.log", OTHER_CORE):
        yield


@contextmanager
def process(command: list[str], log: Path, core: str) -> Iterator[int]:
    """A process on one core, ended at the end."""
    with log.open("ab") as sink:
        running = subprocess.Popen(["taskset", "-c", core, *command], stdout=sink, stderr=sink)
        try:
            yield running.pid
        finally:
            running.terminate()
            with suppress(subprocess.TimeoutExpired):
                running.wait(10.0)
            running.kill()
            running.wait()


def wait_for(port: int) -> None:
    """Return once somebody listens."""
    end = time.monotonic() + _STARTED_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def _sheaf(folder: Path, port: int, engine_ports: list[int]) -> list[str]:
    pods = [
        {"name": f"m-{place}", "model": "m", "engineUrl": f"http://127.0.0.1:{engine}", "ready": True}
        for place, engine in enumerate(engine_ports)
    ]
    declared = {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"}}
    model = {**declared, "spec": {"source": "hf://org/base"}}
    (folder / "fleet.json").write_text(json.dumps({"version": 1, "models": [model], "pods": pods}))
    options = ["--listen", f"127.0.0.1:{port}", "--fleet-file", str(folder / "fleet.json")]
    return [sys.executable, "-m", "sheaf_gateway", *options]


def _router(package: str, policy: str) -> Command:
    def command(_folder: Path, port: int, engine_ports: list[int]) -> list[str]:
        urls = [f"http://127.0.0.1:{engine}" for engine in engine_ports]
        listen = ["--host", "127.0.0.1", "--port", str(port), "--policy", policy]
        metrics = ["--prometheus-port", str(free_port())]
        return [str(PEERS / "python"), "-m", f"{package}.launch_router", *listen, *metrics, "--worker-urls", *urls]

    return command


def _nginx_proxy(folder: Path, port: int, engine_ports: list[int]) -> list[str]:
    upstream = "".join(f"server 127.0.0.1:{engine};" for engine in engine_ports)
    return _nginx(
        folder / "nginx",
        f"""upstream engines {{ {upstream} keepalive 256; }}
        server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engines; proxy_http_version 1.1;
          proxy_set_header Connection ""; proxy_buffering off; client_body_buffer_size 64k; }} }}""",
    )


def _replies(ports: list[int]) -> str:
    listens = "".join(f"listen 127.0.0.1:{port};" for port in ports)
    models = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]})
    info = json.dumps({"model_path": "m", "served_model_name": "m", "status": "ready"})
    return f"""server {{ {listens} default_type application/json;
      location = /v1/models {{ return 200 '{models}'; }}
      location ~ ^/(get_)?(server|model)_info$ {{ return 200 '{info}'; }}
      location / {{ return 200 '{REPLY.decode()}'; }} }}"""


def _nginx(folder: Path, servers: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = "".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"""worker_processes 1; pid {folder}/pid; daemon off; master_process off; error_log {folder}/error.log;
        events {{ worker_connections 4096; }}
        http {{ {paths} access_log off; keepalive_requests 1000000000; tcp_nodelay on; {servers} }}"""
    )
    return [shutil.which("nginx") or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
