"""PID 1 of one machine of the cluster: starts its daemons, starts them again when they end, and reaps orphans.

Run as ``python -I init.py SOCKET HOSTNAME LEASH MOUNT...`` in new mount, process and network namespaces. LEASH is
the number of an inherited pipe; when its other end closes, because its holder died, the machine ends (-1: none). When it dies the
kernel ends every process of the namespaces at once and takes mounts, links and routes with them: that is how a node is
lost in a test, and why a crash leaves nothing behind. Standard library only, and no other module of the cluster, so
that it starts in milliseconds.

One JSON request a connection on the Unix socket, one JSON answer:
``{"start": {"name", "argv", "env", "log"}}``, ``{"stop": NAME, "signal": N}`` (not started again until ``start``), or
``{}``; each answers ``{NAME: PID or null, ...}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESTART_DELAYS = (0.5, 1.0, 2.0, 5.0)  # seconds; the last one repeats
LONG_LIFE = 30.0  # seconds after which an end counts as the first again
REQUEST_LIMIT = 1 << 16
REQUEST_TIMEOUT = 2.0


class Daemon:
    """One program that should run until it is stopped."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.wanted = True
        self.ends = 0
        self.started = 0.0
        self.due = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, now: float) -> None:
        with Path(self.spec["log"]).open("ab") as log:
            self.process = subprocess.Popen(
                self.spec["argv"],
                env={**os.environ, **self.spec["env"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started = now

    def ended(self, now: float) -> None:
        self.process = None
        self.ends = 1 if now - self.started > LONG_LIFE else self.ends + 1
        self.due = now + RESTART_DELAYS[min(self.ends, len(RESTART_DELAYS)) - 1]

    def tend(self, now: float) -> None:
        if self.process is not None and self.process.poll() is not None:
            self.ended(now)
        if self.process is None and self.wanted and now >= self.due:
            try:
                self.start(now)
            except OSError as error:  # PID 1 must outlive a program that has gone
                print(f"{self.spec['name']}: {error}", file=sys.stderr, flush=True)
                self.ended(now)


class Init:
    """The daemons by name, and the requests that change them."""

    def __init__(self) -> None:
        self.daemons: dict[str, Daemon] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if spec := request.get("start"):
            self._start(spec)
        if name := request.get("stop"):
            self._stop(self.daemons[name], request.get("signal", signal.SIGTERM))
        return {name: daemon.process and daemon.process.pid for name, daemon in self.daemons.items()}

    def _start(self, spec: dict[str, Any]) -> None:
        running = self.daemons.get(spec["name"])
        if running and running.process is not None:
            running.wanted = True
            return
        daemon = self.daemons[spec["name"]] = Daemon(spec)
        daemon.start(time.monotonic())

    def _stop(self, daemon: Daemon, number: int) -> None:
        daemon.wanted = False
        if daemon.process is not None:
            daemon.process.send_signal(number)

    def tend(self) -> None:
        """Popen objects are polled first, so that reaping orphans never takes a daemon's status away."""
        for daemon in self.daemons.values():
            daemon.tend(time.monotonic())
        own = {daemon.process.pid for daemon in self.daemons.values() if daemon.process}
        for pid in _children() - own:
            os.waitpid(pid, os.WNOHANG)


def _children() -> set[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in text.split()}


def serve(path: str, leash: int) -> None:
    init = Init()
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        Path(path).chmod(0o600)
        listener.listen(8)
        wake = _wake_on_children()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        if leash >= 0:
            os.set_inheritable(leash, False)
            selector.register(leash, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select(timeout=1.0)}
            if leash in ready:
                return
            if listener in ready:
                _converse(init, listener)
            if wake in ready:
                wake.recv(4096)
            init.tend()


def _wake_on_children() -> socket.socket:
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reading


def _converse(init: Init, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(REQUEST_TIMEOUT)
        try:
            request = json.loads(connection.makefile("rb").readline(REQUEST_LIMIT))
            answer = init.answer(request)
        except (OSError, ValueError, KeyError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            connection.sendall(json.dumps(answer).encode())
        except OSError:
            return  # the asker has gone; what it asked for is done


def prepare(hostname: str, mounts: list[str]) -> None:
    """Mounts made here stay here, and pass on into containers that ask for it. ``FOLDER`` becomes this machine's own, empty;
    ``SOURCE:TARGET`` shows the one as the other."""
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    for mount in mounts:
        source, _, target = mount.rpartition(":")
        words = ["--bind", source] if source else ["-t", "tmpfs", "own"]
        subprocess.run(["mount", *words, target], check=True)
    socket.sethostname(hostname)


if __name__ == "__main__":
    prepare(sys.argv[2], sys.argv[4:])
    serve(sys.argv[1], int(sys.argv[3]))
