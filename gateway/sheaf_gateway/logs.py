"""A log that nobody waits for: a reader that stops reading must not stop the gateway.

What goes to a pipe, a terminal or a socket is written without waiting. Pipes and terminals are opened once more for
that, since the flag belongs to everybody who holds the same opening, parents and sisters too; sockets take it with each
write. What is not taken is kept, up to `MAX_KEPT` bytes, and tried again soon; beyond that whatever comes is lost and
counted. Files are written as ever.
"""

import asyncio
import io
import os
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

MAX_KEPT = 4 * 2**20

_AGAIN_S = 0.1
_LAST_TRIES = 50
_STEP_S = 0.01

Send = Callable[[bytes], int]


class LogStream(io.RawIOBase):
    """The writing end of a log. `send` writes a part and says how much, or raises `BlockingIOError`; `lost` counts
    lines."""

    def __init__(self, send: Send) -> None:
        self.lost = 0
        self._send = send
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Write or keep all of it, or lose it: 0."""
        text, before = bytes(data), self.lost
        with self._lock:
            self._drain()
            if self._size + len(text) > MAX_KEPT:
                self._lose([text])
            else:
                self._kept.append(text)
                self._size += len(text)
                self._drain()
        if self._kept:
            self._try_again()
        return len(text) if self.lost == before else 0

    def close(self) -> None:
        """Write what was kept, for a moment; then nothing any more."""
        for _ in range(_LAST_TRIES if self._kept else 0):
            with self._lock:
                self._drain()
            if not self._kept:
                break
            time.sleep(_STEP_S)
        if self._timer is not None:
            self._timer.cancel()
        self._send = _closed
        super().close()

    def _drain(self) -> None:
        while self._kept:
            head = self._kept[0]
            try:
                sent = self._send(head)
            except BlockingIOError:
                return
            except OSError:
                self._lose(self._kept)
                self._kept.clear()
                self._size = 0
                return
            self._size -= sent
            if sent == len(head):
                self._kept.popleft()
            else:
                self._kept[0] = head[sent:]

    def _lose(self, texts: "deque[bytes] | list[bytes]") -> None:
        self.lost += sum(max(1, text.count(b"\n")) for text in texts)

    def _try_again(self) -> None:
        if self._timer is None:
            with suppress(RuntimeError):
                self._timer = asyncio.get_running_loop().call_later(_AGAIN_S, self._again)

    def _again(self) -> None:
        self._timer = None
        with self._lock:
            self._drain()
        if self._kept:
            self._try_again()


def lost_lines(otherwise: int) -> int:
    """Lines that standard error has lost, where nobody waits for it; else `otherwise`."""
    stream = getattr(sys.stderr, "buffer", None)
    return stream.lost if isinstance(stream, LogStream) else otherwise


@contextmanager
def unwaited_stderr() -> Iterator[None]:
    """Within it, nobody waits for the reader of standard error."""
    before = sys.stderr
    try:
        descriptor = before.fileno()
    except (AttributeError, OSError, ValueError):
        yield
        return
    with sending(descriptor) as send:
        stream = LogStream(send)
        sys.stderr = io.TextIOWrapper(stream, "utf-8", "backslashreplace", write_through=True)
        try:
            yield
        finally:
            sys.stderr.detach()
            sys.stderr = before
            stream.close()


@contextmanager
def sending(descriptor: int) -> Iterator[Send]:
    """Writes to a descriptor without waiting, where it is one that might make us wait."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            yield lambda data: sock.send(data, socket.MSG_DONTWAIT)
        return
    own = _opened_again(descriptor) if stat.S_ISFIFO(mode) or os.isatty(descriptor) else None
    try:
        yield lambda data: os.write(descriptor if own is None else own, data)
    finally:
        if own is not None:
            os.close(own)


def _opened_again(descriptor: int) -> int | None:
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None


def _closed(_data: bytes) -> int:
    raise OSError
