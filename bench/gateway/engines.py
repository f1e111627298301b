"""The engines of the benchmark: two on the other core, with nothing to do but to answer as vLLM does.

nginx answers whole replies of four lengths in turn, so that no head of an answer is the one before; stub.py streams.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from processes import OTHER_CORE, free_port, process, wait_for
from stub import ASIDE, METRICS, REPLIES


@contextmanager
def engines(folder: Path, pace_ms: float | None) -> Iterator[list[int]]:
    """Ports of engines of whole replies, or of streams with a chunk each `pace_ms`."""
    ports = [free_port(), free_port()]
    with ExitStack() as running:
        for command in _commands(folder, ports, pace_ms):
            running.enter_context(process(command, folder / "engine.log", OTHER_CORE))
        for port in ports:
            wait_for(port)
        yield ports


def _commands(folder: Path, ports: list[int], pace_ms: float | None) -> list[list[str]]:
    if pace_ms is None:
        return [nginx(folder / "engines", _replies(ports))]
    script = str(Path(__file__).parent / "stub.py")
    return [[sys.executable, script, str(port), str(pace_ms)] for port in ports]


def _replies(ports: list[int]) -> str:
    listens = "".join(f"listen 127.0.0.1:{port};" for port in ports)
    aside = "".join(f"location = {path} {{ return 200 '{json.dumps(said)}'; }}" for path, said in ASIDE.items())
    replies = [reply.decode() for reply in REPLIES]
    shares = "".join(f"{'*' if reply is replies[-1] else '25%'} '{reply}';" for reply in replies)
    return f"""split_clients "$connection $connection_requests" $reply {{ {shares} }}
    server {{ {listens} default_type application/json; {aside}
      location = /metrics {{ default_type text/plain; return 200 '{METRICS}'; }}
      location / {{ return 200 $reply; }} }}"""


def nginx(folder: Path, servers: str) -> list[str]:
    """The command of an nginx of these servers."""
    folder.mkdir(exist_ok=True)
    paths = "".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"""worker_processes 1; pid {folder}/pid; daemon off; master_process off; error_log {folder}/error.log;
        events {{ worker_connections 4096; }}
        http {{ {paths} access_log off; keepalive_requests 1000000000; tcp_nodelay on; {servers} }}"""
    )
    return [shutil.which("nginx") or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
