"""Running programs: what they say is shown only where they fail, and then the last lines of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .errors import ClusterError

SHOWN_LINES = 15
T = TypeVar("T")


def say(line: str) -> None:
    """One plain line of progress."""
    print(line, file=sys.stderr, flush=True)


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 600,
    check: bool = True,
) -> str:
    """The program's standard output.

    Raises:
        ClusterError: it failed (with the end of what it said), took longer than ``timeout`` seconds, or is not there.
    """
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} is not installed; `python e2e/cluster build` says what is missing") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(command)}` did not end within {timeout:g} s") from None
    if check and done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed ({done.returncode}):\n{_end_of(done.stderr or done.stdout)}")
    return done.stdout


def _end_of(text: str) -> str:
    return "\n".join("  " + line for line in text.strip().splitlines()[-SHOWN_LINES:])


def until(what: str, probe: Callable[[], T | None], *, timeout: float, every: float = 0.1) -> T:
    """The first value of ``probe`` that is true.

    Raises:
        ClusterError: none came within ``timeout`` seconds; the message names ``what``.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := probe():
            return value
        time.sleep(every)
    raise ClusterError(f"{what}: not within {timeout:g} s")


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """One process at a time; whoever must wait is told for what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is {what}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
