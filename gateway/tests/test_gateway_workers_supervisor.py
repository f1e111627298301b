"""The parent of workers: what it binds, what it leaves alone, and what it decides when one dies."""

import asyncio
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.config import ConfigError, GatewayConfig
from sheaf_gateway.workers.place import Channel, Place, Told, read_place
from sheaf_gateway.workers.plan import CALM_S, LONGEST_BACKOFF_S, adopted, backoff, crashed
from sheaf_gateway.workers.supervisor import Supervisor, bound


def config(folder, **more) -> GatewayConfig:
    files = {"listen": "127.0.0.1:0", "fleetFile": folder / "fleet.json", "workers": 2}
    return GatewayConfig.model_validate({**files, **more})


async def test_a_start_that_fails_leaves_the_working_directory_as_it_was(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "precious").write_text("keep")
    monkeypatch.chdir(here)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        supervisor = Supervisor(lambda: config(tmp_path, listen=listen))
        with pytest.raises(ConfigError, match="the port is in use"):
            await supervisor.begin()
        await supervisor.stop()
        await supervisor.close()
    assert (here / "precious").read_text() == "keep"
    with pytest.raises(RuntimeError):
        _ = supervisor.room


def test_workers_get_sockets_of_one_port():
    sockets = bound("127.0.0.1:0", 3)
    try:
        assert len({sock.getsockname() for sock in sockets}) == 1
        port = sockets[0].getsockname()[1]
        sockets[0].listen()
        with pytest.raises(ConfigError, match="the port is in use"):
            bound(f"127.0.0.1:{port}", 2)
    finally:
        for sock in sockets:
            sock.close()


def test_every_interface_may_be_meant():
    (sock,) = bound(":0", 1)
    sock.close()


def test_an_address_that_cannot_be_had_is_one_clear_error():
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0: "):
        bound("192.0.2.1:0", 2)


@given(st.integers(1, 12), st.sets(st.integers(0, 11)))
def test_each_socket_of_the_dead_is_served_by_exactly_one_of_the_living(count, alive):
    alive = {index for index in alive if index < count}
    found = adopted(count, alive)
    assert set(found) == alive
    served = sorted(alive) + [index for sockets in found.values() for index in sockets]
    assert sorted(served) == (list(range(count)) if alive else [])


@given(st.integers(1, 10_000))
def test_the_pause_before_a_restart_grows_and_is_bounded(crashes):
    assert 0.1 <= backoff(crashes) <= backoff(crashes + 1) <= LONGEST_BACKOFF_S


def test_a_calm_minute_makes_up_for_crashes():
    assert crashed(3, CALM_S) == 1
    assert crashed(3, 1.0) == 4


def test_a_place_survives_the_command_line(tmp_path):
    place = Place(1, 2, tmp_path, (5, 6), 7)
    assert read_place(msgspec.json.encode(place, enc_hook=str).decode()) == place
    assert place.name.startswith("w1-")


async def test_the_channel_carries_words_and_ends_on_anything_else():
    ours, theirs = socket.socketpair()
    one, other = await Channel.over(ours), await Channel.over(theirs)
    one.say("adopt", (1, 2))
    assert await other.hear() == Told("adopt", (1, 2))
    one._writer.write(b'{"word": "dance"}\n')
    assert await other.hear() is None
    one._writer.write(b"x" * 200_000)
    assert await other.hear() is None
    await other.close()
    assert await one.hear() is None
    await one.close()
    one.say("ready")
    await asyncio.sleep(0)
