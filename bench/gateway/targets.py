"""What is measured: Sheaf's gateway as configured by default, nginx, and the peers.

Every target gets the same engines, runs on core 0 alone, and is ready once it answers as an engine does.
"""

import http.client
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from engines import nginx
from peers import FULL, Target, peers
from processes import GATEWAY_CORE, free_port, has_ended, process

_READY_S, _IN_A_ROW = 120.0, 32
_ASKED = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Are you there?"}]})


def targets() -> tuple[list[Target], list[str]]:
    """Those that can be started here, and a line for each that cannot."""
    found, missing = peers()
    sheaf = Target("sheaf", _sheaf, replace(FULL, rates=(20, 200)))
    return [sheaf, Target("nginx", _nginx_proxy), *found], missing


@contextmanager
def started(target: Target, folder: Path, engines: list[int]) -> Iterator[tuple[int, int]]:
    """Its process id and port, once it is ready."""
    port = free_port()
    log = folder / f"{target.name.replace('/', '-')}.log"
    with process(target.command(folder, port, engines), log, GATEWAY_CORE) as pid:
        _ready(pid, port, log)
        yield pid, port


def _ready(pid: int, port: int, log: Path) -> None:
    """Return once it answered some requests in a row."""
    end, well = time.monotonic() + _READY_S, 0
    while well < _IN_A_ROW:
        if has_ended(pid) or time.monotonic() > end:
            raise TimeoutError(f"it did not get ready; its last words: {_last_words(log)}")
        well = well + 1 if _answers(port) else 0
        time.sleep(0.0 if well else 0.1)


def _last_words(log: Path) -> str:
    lines = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(errors="replace")).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "none")


def _answers(port: int) -> bool:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        asking.request("POST", "/v1/chat/completions", _ASKED, {"Content-Type": "application/json"})
        answer = asking.getresponse()
        return answer.status == 200 and b"yyyy" in answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asking.close()


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


def _nginx_proxy(folder: Path, port: int, engine_ports: list[int]) -> list[str]:
    upstream = "".join(f"server 127.0.0.1:{engine};" for engine in engine_ports)
    return nginx(
        folder / "nginx",
        f"""upstream engines {{ {upstream} keepalive 256; keepalive_requests 1000000000; }}
        server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engines; proxy_http_version 1.1;
          proxy_set_header Connection ""; proxy_buffering off; client_body_buffer_size 64k; }} }}""",
    )
