"""Processes on a core of their own, and the CPU time that they and the cores spent."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GATEWAY_CORE, OTHER_CORE = "0", "1"
_STARTED_S, _ENDED_S = 60.0, 10.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], log: Path, core: str) -> Iterator[int]:
    """A process on one core, ended at the end with all that it started."""
    with log.open("ab") as sink:
        pinned = ["taskset", "-c", core, *command]
        running = subprocess.Popen(pinned, stdout=sink, stderr=sink, start_new_session=True)
        try:
            yield running.pid
        finally:
            _tell(running.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                running.wait(_ENDED_S)
            _tell(running.pid, signal.SIGKILL)
            running.wait()


def _tell(group: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, what)


def has_ended(pid: int) -> bool:
    """Whether one's own process came to its end by itself."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


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


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children, by the scheduler's own account."""
    tasks = [task for one in _tree(pid) for task in Path(f"/proc/{one}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _core_s(core: str) -> float:
    """Seconds that a core was busy, whoever used it."""
    line = Path("/proc/stat").read_text().split(f"cpu{core} ")[1].splitlines()[0].split()
    idle = int(line[3]) + int(line[4])
    return (sum(map(int, line[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return [pid, *(found for child in children for found in _tree(child))]


class Meter:
    """What a process spends from `begin` to `read`; pid 0: no process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.begin()

    def begin(self) -> None:
        """From now on."""
        self._before = self._now()

    def read(self, count: int) -> dict[str, float]:
        """`cpu_us` for each of so many, share `others` of its core that others had, share `load` of the other core."""
        used, core, other, passed = (now - then for now, then in zip(self._now(), self._before, strict=True))
        others = (core - used) / passed if self._pid else 0.0
        return {
            "cpu_us": used / max(count, 1) * 1e6,
            "others": round(others, 3),
            "load": round(other / passed, 3),
        }

    def _now(self) -> tuple[float, float, float, float]:
        used = _cpu_s(self._pid) if self._pid else 0.0
        return used, _core_s(GATEWAY_CORE), _core_s(OTHER_CORE), time.monotonic()
