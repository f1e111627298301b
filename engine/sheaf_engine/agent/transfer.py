"""What every fetch is given: how far it may go, what it may reach, and how bytes get to the disk.

Bytes are counted while they stream, never believed from a header; a deadline ends sources that drip. A full disk and
a stop of the agent end a fetch between two chunks.
"""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import NoReturn

from sheaf_engine.agent.errors import AdapterError, Reason

CHUNK = 2**20
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0

Resolver = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as the system resolves it; OSError where it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Outside:
    """What a fetch may reach, from the agent's configuration."""

    file_roots: tuple[Path, ...] = ()
    allow_private_addresses: bool = False
    s3_endpoint_url: str | None = None
    hf_endpoint: str | None = None
    hf_token: str | None = None
    https_ca_file: Path | None = None
    resolver: Resolver = resolve


@dataclass(slots=True)
class Budget:
    """Bytes and seconds that one fetch may still use."""

    limit: int
    deadline: float
    stop: Event = field(default_factory=Event)
    used: int = 0
    tell: Callable[[int], None] | None = None

    @classmethod
    def of(cls, limit: int, seconds: float, stop: Event | None = None) -> "Budget":
        """A budget that begins now."""
        return cls(limit, time.monotonic() + seconds, stop or Event())

    def spend(self, size: int) -> None:
        """Count bytes that arrived; AdapterError where that is too much, too late, or the agent stops."""
        self.used += size
        if self.tell is not None:
            self.tell(self.used)
        if self.used > self.limit:
            raise AdapterError(
                Reason.SIZE_LIMIT_EXCEEDED,
                f"the source sent more than the limit of {self.limit} bytes; raise sizeLimit",
            )
        if time.monotonic() > self.deadline:
            raise AdapterError(Reason.SOURCE_UNREACHABLE, "the source was too slow: the time for one fetch ran out")
        if self.stop.is_set():
            raise AdapterError(Reason.SOURCE_UNREACHABLE, "the agent stops; the fetch was given up")


def disk_error(error: OSError, path: Path) -> NoReturn:
    """Turn a failed write into what a person can mend."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise AdapterError(
            Reason.DISK_FULL, f"the disk of {path.parent} is full; free space there or move the cache"
        ) from error
    raise AdapterError(Reason.AGENT_ERROR, f"{path} cannot be written: {error.strerror}") from error


def write(chunks: Iterable[bytes], target: Path, budget: Budget) -> None:
    """Write chunks to a new file, each counted before it is written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        disk_error(error, target)
    try:
        for chunk in chunks:
            budget.spend(len(chunk))
            _append(descriptor, chunk, target)
    finally:
        os.close(descriptor)


def _append(descriptor: int, chunk: bytes, target: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        disk_error(error, target)
