"""Loopback ports that nobody else can take between choosing and listening.

A socket that is bound but does not listen keeps the port: the kernel gives it to no one who asks for any free port,
while a server that names the port and sets SO_REUSEADDR, as every server here does, may listen on it, again and again
over restarts.
"""

import errno
import socket
from collections.abc import Iterable


class PortInUseError(Exception):
    """Somebody listens on the port already."""


class PortLease:
    """A port of this machine, held until closed."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise PortInUseError(_explain(host, port, error)) from error
        self.host = host
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let go of the port."""
        self._socket.close()


def release(leases: Iterable[PortLease]) -> None:
    """Let go of all of them."""
    for lease in leases:
        lease.close()


def _explain(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; end the program that listens there or choose another with --listen"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights; choose one above 1023 with --listen"
    return f"cannot listen on {host}:{port}: {error.strerror}; choose another address with --listen"
