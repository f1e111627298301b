"""`sheaf up` as a user starts it, and a bare engine to compare with: real processes on loopback, ended by process id."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

VLLM_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "SHEAF_KERNELS": "off",
}


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Sheaf:
    """A running `sheaf up`."""

    url: str
    process: subprocess.Popen[str]
    state_dir: Path
    manifests: Path
    lines: list[str] = field(default_factory=list)

    def get(self, kind: str) -> list[dict[str, Any]]:
        """Objects of a kind, or pods, as `sheaf get` sees them."""
        answer = httpx.get(f"{self.url}/sheaf/v1/objects/{kind}", timeout=10).raise_for_status().json()
        return list(answer["items"])

    def wait_for(self, what: str, holds: Any, timeout: float = 120.0) -> None:
        """Wait until `holds()` is true; the failure shows the tail of every log."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except (httpx.HTTPError, KeyError, IndexError):
                pass
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {timeout:.0f} s\n{self.logs()}")

    def logs(self) -> str:
        """The tails of all logs, for a failure's message."""
        files = sorted((self.state_dir / "logs").glob("*.log"))
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-15:]) for file in files
        )


@contextmanager
def sheaf_up(manifests: Path, state_dir: Path, *arguments: str, timeout: float = 300.0) -> Iterator[Sheaf]:
    """Start `sheaf up`, wait for its `ready` line, stop it with Ctrl-C, and see that it ends cleanly."""
    url = f"http://127.0.0.1:{free_port()}"
    listen = url.removeprefix("http://")
    command = [sys.executable, "-m", "sheaf.cli", "up", str(manifests), "--listen", listen]
    command += ["--state-dir", str(state_dir), "--no-view", *arguments]
    errors = (state_dir.parent / f"{state_dir.name}.stderr").open("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    sheaf = Sheaf(url, process, state_dir, manifests)
    try:
        await_line(sheaf, f"ready {url}", timeout)
        yield sheaf
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, f"sheaf up ended with {process.returncode}\n{sheaf.logs()}"
    finally:
        stop(process)
        if process.stdout:
            process.stdout.close()
        errors.close()


def own_processes(sheaf: Sheaf, command: bytes = b"") -> dict[int, str]:
    """The pod ("": none) by process of this run of `sheaf up`, whose mark is in the environment of each; of those with
    `command` in their command line."""
    run = json.loads((sheaf.state_dir / "run.json").read_text())["run"]
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            raw, words = (entry / "environ").read_bytes().decode(errors="replace"), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        variables = dict(part.split("=", 1) for part in raw.split("\0") if "=" in part)
        if variables.get("SHEAF_RUN") == run and command in words:
            found[int(entry.name)] = variables.get("SHEAF_POD", "")
    return found


def await_line(sheaf: Sheaf, wanted: str, timeout: float) -> None:
    """Read stdout until the wanted line; `sheaf up` prints nothing for ever only if it hangs, so a watchdog ends it."""
    deadline = time.monotonic() + timeout
    assert sheaf.process.stdout is not None
    os.set_blocking(sheaf.process.stdout.fileno(), False)
    while time.monotonic() < deadline and sheaf.process.poll() is None:
        line = sheaf.process.stdout.readline()
        if not line:
            time.sleep(0.05)
            continue
        sheaf.lines.append(line.rstrip("\n"))
        if sheaf.lines[-1] == wanted:
            return
    raise AssertionError(f"no line {wanted!r}; printed {sheaf.lines[-20:]}\n{sheaf.logs()}")


class Running(Protocol):
    """A process as `subprocess.Popen` has it."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def stop(process: Running) -> None:
    """End a process that may have ended already."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def bare_vllm(model: Path, name: str, adapters: dict[str, Path], arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Stock vLLM alone, with the adapters loaded at start; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), *arguments]
    command += ["--lora-modules", *(f"{adapter}={path}" for adapter, path in adapters.items())]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, text=True, env={**os.environ, **VLLM_ENV}, start_new_session=True
        )
        try:
            await_health(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def await_health(url: str, process: Running, log: Path, timeout: float = 240.0, every: float = 0.5) -> None:
    """Wait until the URL answers 200."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(every)
    raise AssertionError(f"{url} never answered\n" + "\n".join(log.read_text().splitlines()[-30:]))


def manifest(kind: str, name: str, **spec: Any) -> str:
    """One object as a YAML document (JSON is YAML)."""
    return json.dumps({"apiVersion": "sheaf.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def write_manifests(path: Path, *documents: str) -> None:
    """Replace a manifest file at once, as an editor does."""
    draft = path.with_suffix(".tmp")
    draft.write_text("\n---\n".join(documents) + "\n")
    draft.replace(path)
