"""Engines that start quickly: a process that has imported them once and forks one for each line on its stdin.

A line is `{"arguments": [...], "log": PATH}`, the answer the new process's id; it leads a group of its own. All groups
end with the nursery.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn


class Sprout:
    """One engine, as far as `subprocess.Popen` is used of others."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return 0 if select.select([self._handle], [], [], 0)[0] else None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return 0

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """All of its group at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Nursery:
    """Where engines are forked from."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()

    def start(self, arguments: list[str], log: str) -> Sprout:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            stdin.write(json.dumps({"arguments": arguments, "log": log}) + "\n")
            stdin.flush()
            return Sprout(int(stdout.readline()))


@contextmanager
def nursery(main: str, environment: Mapping[str, str] | None = None) -> Iterator[Nursery]:
    """Engines whose program is the function `MODULE:NAME`, which reads its command line."""
    command = [sys.executable, __file__, main]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, **(environment or {})}}
    with subprocess.Popen(command, text=True, **pipes) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def serve(main: str) -> None:
    module, _, name = main.partition(":")
    run = getattr(importlib.import_module(module), name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    started = []
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            bring_up(run, asked["arguments"], asked["log"])
        started.append(pid)
        print(pid, flush=True)
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def bring_up(run: Callable[[], int | None], arguments: list[str], log: str) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.argv = ["engine", *arguments]
    sys.exit(run() or 0)


if __name__ == "__main__":
    serve(sys.argv[1])
