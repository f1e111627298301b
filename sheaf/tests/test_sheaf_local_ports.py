"""A leased port belongs to one pod: servers that name it may listen on it, nobody else gets it."""

import socket

import pytest
from sheaf.local.ports import PortInUseError, PortLease


def listen(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen()
    return server


def connected_port(server: socket.socket) -> int:
    """The port that the kernel chose for one more client of the server."""
    with socket.create_connection(server.getsockname()) as client:
        server.accept()[0].close()
        return int(client.getsockname()[1])


def test_a_server_may_listen_on_its_port_again_and_again() -> None:
    lease = PortLease()
    for _ in range(3):
        with listen(lease.port), socket.create_connection(("127.0.0.1", lease.port)):
            pass
    lease.close()


def test_nobody_who_asks_for_any_port_gets_a_leased_one() -> None:
    leases = [PortLease() for _ in range(50)]
    held = {lease.port for lease in leases}
    assert len(held) == 50
    with listen(0) as server:
        given = {connected_port(server) for _ in range(200)}
    assert not given & held
    for lease in leases:
        lease.close()


def test_a_port_in_use_is_refused_with_the_remedy() -> None:
    with listen(0) as server, pytest.raises(PortInUseError, match=r"port \d+ on 127.0.0.1 is in use; .*--listen"):
        PortLease("127.0.0.1", server.getsockname()[1])


def test_an_address_that_is_not_here_is_refused_with_the_remedy() -> None:
    with pytest.raises(PortInUseError, match=r"cannot listen on 192.0.2.1:8000: .*--listen"):
        PortLease("192.0.2.1", 8000)
