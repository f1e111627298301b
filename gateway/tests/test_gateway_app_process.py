"""The process: flags and files, clear one-line refusals, a clean end on SIGTERM."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys

import pytest
from gateway_fixtures import ask, chat, make_world, parse  # noqa: F401
from sheaf_gateway.__main__ import main
from sheaf_gateway.config import ConfigError, GatewayConfig, load_config, parse_listen
from sheaf_gateway.main import start


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        (":80", (None, 80)),
        ("[::1]:8000", ("::1", 8000)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses_are_read(text, where):
    assert parse_listen(text) == where


@pytest.mark.parametrize("text", ["", "8000", "host:", "host:x", "host:70000", "host:-1", "host:٣"])
def test_a_bad_address_says_how_to_write_one(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "fleetFile: Field required"),
        ('{"fleetFile": "f", "listen": "nowhere"}', "listen:"),
        ('{"fleetFile": "f", "fleetfile": "g"}', "fleetfile:"),
        ('{"fleetFile": "f", "limits": {"maxBody": "12 apples"}}', "limits.maxBody"),
        ('{"fleetFile": "f", "limits": {"maxAttempts": 0}}', "limits.maxAttempts"),
        ('{"fleetFile": "f", "times": {"shutdown": "soon"}}', "times.shutdown"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_1(tmp_path, capfd, document, words):
    path = tmp_path / "config.json"
    path.write_text(document)
    assert main(["--config", str(path)]) == 1
    said = capfd.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.json", {})


def test_flags_are_laid_over_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"fleetFile": "f", "listen": "127.0.0.1:1"}')
    config = load_config(path, {"listen": "127.0.0.1:2", "fleet_file": None})
    assert (config.listen, str(config.fleet_file)) == ("127.0.0.1:2", "f")


def config(folder, **more) -> GatewayConfig:
    return GatewayConfig.model_validate({"listen": "127.0.0.1:0", "fleetFile": folder / "fleet.json", **more})


async def test_a_port_in_use_is_one_clear_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: the port is in use"):
            await start(config(tmp_path, listen=f"127.0.0.1:{port}"))


async def test_files_that_cannot_be_used_stop_the_start(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        await start(config(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"keysFile .*No such file"):
        await start(config(tmp_path, keysFile=tmp_path / "keys.yaml"))
    (tmp_path / "keys.yaml").write_text("keys: 7")
    with pytest.raises(ConfigError, match=r"keysFile .*keys: Input should be"):
        await start(config(tmp_path, keysFile=tmp_path / "keys.yaml"))


async def test_a_gateway_that_stops_lets_streams_end(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.engines[0].tokens, world.engines[0].pause = 10, 0.02
    stream = asyncio.create_task(ask(world, "POST", "/v1/chat/completions", chat(stream=True)))
    await world.until(lambda: world.engines[0].seen)
    await world.gateway.stop(1.0)
    status, _, body = await stream
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.timeout(30)
async def test_the_process_serves_and_ends_cleanly_on_sigterm(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "fleet.json").write_text('{"version": 3}')
    command = [sys.executable, "-m", "sheaf_gateway", "--listen", f"127.0.0.1:{port}"]
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, "--fleet-file", str(tmp_path / "fleet.json"), **pipes)
    try:
        log = b""
        while b'"listening"' not in log:
            log = await process.stderr.readline()
            assert log, "the gateway ended before it listened"
        status, _, body = await get(port, "/v1/models")
        assert (status, json.loads(body)["data"]) == (200, [])
        os.kill(process.pid, signal.SIGTERM)
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert out == b""
    assert b"Traceback" not in err
    assert all(json.loads(line) for line in err.splitlines())


@pytest.mark.timeout(30)
async def test_a_reader_of_the_log_that_stops_reading_stops_nobody(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "fleet.json").write_text('{"version": 3}')
    command = [sys.executable, "-m", "sheaf_gateway", "--listen", f"127.0.0.1:{port}"]
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(*command, "--fleet-file", str(tmp_path / "fleet.json"), stderr=write)
    os.close(write)
    try:
        log = b""
        while b'"listening"' not in log:
            log += await asyncio.to_thread(os.read, read, 65_536)
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, 4096)
        async with asyncio.timeout(10):
            for _ in range(40):
                status, _, _ = await get(port, "/v1/chat/completions", b'{"model": "x", "messages": []}')
                assert status in {400, 404}
        os.set_blocking(read, False)
        lines = os.read(read, 65_536)
        async with asyncio.timeout(5):
            while lines.count(b'"event":"request"') < 40:
                await asyncio.sleep(0.02)
                with contextlib.suppress(BlockingIOError):
                    lines += os.read(read, 65_536)
        os.kill(process.pid, signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        os.close(read)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def get(port: int, path: str, body: bytes | None = None):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    method, sent = ("GET", b"") if body is None else ("POST", body)
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    return parse(raw)
