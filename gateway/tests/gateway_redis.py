"""A Redis for tests, and the shared limits in it."""

import asyncio
import os
import shutil
import socket
import uuid

import pytest
from sheaf_gateway.api.shared import SharedLimits
from sheaf_gateway.fleet.view import Rate

BINARY = shutil.which("redis-server")
NEEDED = pytest.mark.skipif(
    BINARY is None and not {"SHEAF_REDIS_URL", "CI"} & os.environ.keys(), reason="needs redis-server or SHEAF_REDIS_URL"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisServer:
    """A real redis-server on loopback that a test may kill and start again."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.port = free_port()
        self.process = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        arguments = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        quiet = asyncio.subprocess.DEVNULL
        self.process = await asyncio.create_subprocess_exec(
            BINARY, *arguments, "--dir", str(self.folder), stdout=quiet, stderr=quiet
        )
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                await writer.wait_closed()
                return

    async def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            await self.process.wait()
            self.process = None


@pytest.fixture
async def server(tmp_path):
    if BINARY is None:
        pytest.skip("needs a redis-server that may be killed")
    server = RedisServer(tmp_path)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
def url(request) -> str:
    return os.environ.get("SHEAF_REDIS_URL") or request.getfixturevalue("server").url


@pytest.fixture
async def make_limits():
    made: list[SharedLimits] = []

    def make(url: str, **options) -> SharedLimits:
        made.append(SharedLimits(url, **{"timeout_s": 2.0, **options}))
        return made[-1]

    yield make
    for limits in made:
        await limits.close()


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}"


def scope(name: str = "tenant `a`", **rate) -> tuple:
    return ((name, Rate(**rate)),)
