"""Datagrams to other gateways: over Unix sockets in a private folder, and over UDP. Nothing here ever waits.

A socket's buffer that is full, a receiver that is gone: the datagram is dropped and counted, and the gossip's numbers
make the receiver ask again. Reading takes a bounded number of datagrams a turn of the event loop.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from sheaf_gateway.peers import metrics

MAX_DATAGRAM = 65_536
_READ_AT_ONCE = 64
_BUFFER = 4 * 2**20
_SUFFIX = ".gossip"

Receive = Callable[[bytes], None]
Address = tuple[str, int]


class _Socket:
    """A datagram socket in the event loop."""

    def __init__(self, sock: socket.socket, receive: Receive, max_size: int = MAX_DATAGRAM) -> None:
        self._socket = sock
        self._max_size = max_size
        self._receive = receive
        sock.settimeout(0.0)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)

    def send(self, data: bytes, target: Address | str) -> OSError | None:
        """Send if that is possible now; what went wrong, else."""
        try:
            self._socket.sendto(data, target)
        except OSError as error:
            metrics.DROPPED.labels("full" if isinstance(error, BlockingIOError) else "unreachable").inc()
            return error
        return None

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                data = self._socket.recv(self._max_size)
            except BlockingIOError:
                return
            except OSError:
                continue
            self._receive(data)


class Siblings:
    """The other workers of this machine: every socket in the room whose name ends on `suffix` is one of them."""

    def __init__(
        self, room: Path, name: str, receive: Receive, *, suffix: str = _SUFFIX, max_size: int = MAX_DATAGRAM
    ) -> None:
        self._room = room
        self._suffix = suffix
        self._path = room / f"{name}{suffix}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.bind(str(self._path))
        except OSError:
            sock.close()
            raise
        self._socket = _Socket(sock, receive, max_size)
        self.targets: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the others call themselves."""
        return tuple(Path(target).name.removesuffix(self._suffix) for target in self.targets)

    def look(self) -> None:
        """See who is there."""
        own = self._path.name
        with contextlib.suppress(OSError), os.scandir(self._room) as found:
            names = [entry.name for entry in found if entry.name.endswith(self._suffix) and entry.name != own]
            self.targets = tuple(str(self._room / name) for name in sorted(names))

    def send(self, data: bytes) -> None:
        """Send to everybody; who does not listen any more is forgotten."""
        for target in self.targets:
            if isinstance(self._socket.send(data, target), ConnectionRefusedError | FileNotFoundError):
                self.targets = tuple(found for found in self.targets if found != target)
                Path(target).unlink(missing_ok=True)
        metrics.SENT.labels("worker").inc(len(self.targets))

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


class Replicas:
    """Gateways elsewhere, by UDP. All workers of a machine listen on one port: the kernel gives each datagram to one of
    them, which passes it on to its siblings."""

    def __init__(self, host: str | None, port: int, receive: Receive) -> None:
        wide = socket.has_dualstack_ipv6()
        family = (socket.AF_INET6 if wide else socket.AF_INET) if host is None else _family(host)
        listening = socket.socket(family, socket.SOCK_DGRAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listening.bind((host or "", port))
        except OSError:
            listening.close()
            raise
        self.port: int = listening.getsockname()[1]
        self._listening = _Socket(listening, receive)
        self._sending = {
            found: _Socket(socket.socket(found, socket.SOCK_DGRAM), _nothing)
            for found in (socket.AF_INET, socket.AF_INET6)[: 1 + wide]
        }
        self.targets: tuple[Address, ...] = ()

    def reach(self, targets: Iterable[Address]) -> None:
        """These are the others from now on; this machine itself, and what a machine without IPv6 cannot reach, is left
        out."""
        found = {target for target in targets if _family(target[0]) in self._sending}
        self.targets = tuple(sorted(target for target in found if not self._own(target)))

    def send(self, data: bytes) -> None:
        """Send to everybody."""
        for target in self.targets:
            self._sending[_family(target[0])].send(data, target)
        metrics.SENT.labels("replica").inc(len(self.targets))

    def close(self) -> None:
        """Stop listening."""
        for each in (self._listening, *self._sending.values()):
            each.close()

    def _own(self, target: Address) -> bool:
        """Whether an address is this machine's: what is sent there from here comes from there."""
        if target[1] != self.port:
            return False
        with socket.socket(_family(target[0]), socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(target)
                return bool(probe.getsockname()[0] == target[0])
            except OSError:
                return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _nothing(_data: bytes) -> None:
    """Nobody answers to where we send from."""
