"""The process that stands between `sheaf up` and one child: nothing that the child starts outlives it.

Run as a file by path with the standard library only (`python -I -S shim.py`), so that it starts in milliseconds. Its
standard input is a JSON line (argv, log, log_limit), then commands; its end means that `sheaf up` is gone, and
everything is killed at once. As a child subreaper (prctl(2)) it inherits orphaned descendants, so that even those
that left their process group are found. Its standard output is JSON lines: `started`, `log_error`, `exited`.

    -> {"argv": [...], "log": "/path/x.log", "log_limit": 10485760}
    -> stop 20            SIGTERM to the child; after so many seconds SIGKILL to all that is left
    <- {"event": "started", "pid": 4711}
    <- {"event": "exited", "code": -9, "lines": ["last", "lines"]}     negative: by that signal
"""
# pathlib would triple the start-up time:
# ruff: noqa: PTH105, PTH113, PTH123, PTH202, PTH208

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections import deque

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KEPT_LINES = 200
LONGEST_LINE = 1000
LAST_WORDS = 2.0
DEFAULT_GRACE = 10.0
EXEC_FAILED = 127


def prctl(option: int, value: int) -> None:
    """Call prctl(2) where there is one; elsewhere the pipe from `sheaf up` alone must do."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Log:
    """The child's output: a file of bounded size and one predecessor, and its last lines. A full disk loses no more."""

    def __init__(self, path: str, limit: int) -> None:
        self.path, self.limit = path, limit
        self.lines: deque[bytes] = deque(maxlen=KEPT_LINES)
        self.rest = b""
        self.size = os.path.getsize(path) if os.path.isfile(path) else 0
        self.failed = False

    def write(self, data: bytes) -> None:
        """Keep the data; the first of several failures in a row is reported."""
        if not data:
            return
        self._remember(data)
        try:
            self._append(data)
            self.failed = False
        except OSError as error:
            if not self.failed:
                say(event="log_error", error=error.strerror)
            self.failed = True

    def _append(self, data: bytes) -> None:
        if self.size + len(data) > self.limit and os.path.isfile(self.path):
            os.replace(self.path, self.path + ".1")
            self.size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self.path, flags, 0o600)
        try:
            self.size += os.write(file, data)
        finally:
            os.close(file)

    def _remember(self, data: bytes) -> None:
        *whole, self.rest = (self.rest + data).replace(b"\r", b"\n").split(b"\n")
        self.rest = self.rest[-LONGEST_LINE:]
        self.lines.extend(line[:LONGEST_LINE] for line in whole if line.strip())

    def last_lines(self) -> list[str]:
        """The last lines as text, oldest first."""
        rest = [self.rest] if self.rest.strip() else []
        return [line.decode("utf-8", "replace") for line in [*self.lines, *rest]][-KEPT_LINES:]


def say(**event: object) -> None:
    """Tell `sheaf up`; where it is gone, the end of standard input says so as well."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def spawn(argv: list[str], output: int) -> int:
    """Start the child in a session of its own, killed by the kernel when this process ends."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(EXEC_FAILED)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(argv[0], argv)  # noqa: S606 - what the pod runs
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(EXEC_FAILED)


def descendants(root: int) -> list[int]:
    """Process ids of all that descend from `root`, children first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    queue = deque([root])
    while queue:
        more = children.get(queue.popleft(), [])
        found += more
        queue += more
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL to each of them that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


class Shim:
    """One child from its start to the end of its last descendant."""

    def __init__(self, argv: list[str], log: Log) -> None:
        self.log = log
        self.wakeup, wake = os.pipe()
        self.output, output = os.pipe()
        for end in (self.wakeup, wake, self.output):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.stop(DEFAULT_GRACE))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.commands = b""
        self.code: int | None = None
        self.deadline: float | None = None
        self.child = spawn(argv, output)
        os.close(output)
        say(event="started", pid=self.child)

    def run(self) -> None:
        """Serve until the child and everything that it started are gone."""
        inputs = [0, self.wakeup, self.output]
        while self.reap():
            for ready in select.select(inputs, [], [], self.pause())[0]:
                if not self.serve(ready):
                    inputs.remove(ready)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                kill_all(descendants(os.getpid()))
        while self.serve(self.output):
            pass
        say(event="exited", code=self.code, lines=self.log.last_lines())

    def pause(self) -> float | None:
        """Seconds until there is something to do without being told."""
        return None if self.deadline is None else max(0.05, self.deadline - time.monotonic())

    def serve(self, ready: int) -> bool:
        """Take what one descriptor has; False when it has ended (or, after the child's end, has nothing left)."""
        try:
            data = os.read(ready, 65536)
        except BlockingIOError:
            return ready != self.output or self.code is None
        if ready == self.output:
            self.log.write(data)
        elif ready == 0:
            self.obey(data)
        return bool(data)

    def obey(self, data: bytes) -> None:
        """Follow commands; the end of them is the end of `sheaf up`."""
        if not data:
            self.deadline = 0.0
            return
        *lines, self.commands = (self.commands + data).split(b"\n")
        for line in lines:
            self.stop(float(line.split()[1]))

    def stop(self, grace: float) -> None:
        """SIGTERM now, SIGKILL to all after the grace (seconds)."""
        if self.deadline is None:
            self.deadline = time.monotonic() + grace
            if self.code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.child, signal.SIGTERM)

    def reap(self) -> bool:
        """Collect what has ended; True while anything is left. Orphans of the child get a moment, then SIGKILL."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self.child:
                self.code = os.waitstatus_to_exitcode(status)
                last = time.monotonic() + LAST_WORDS
                self.deadline = last if self.deadline is None else min(self.deadline, last)


def main() -> None:
    """Read what to run from standard input, and run it."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)
        line += byte
    spec = json.loads(line)
    Shim(spec["argv"], Log(spec["log"], spec["log_limit"])).run()


if __name__ == "__main__":
    main()
