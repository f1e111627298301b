"""Scripted engines for the tests of the pool: what they answer, and sinks that keep what they hear."""

import asyncio

from sheaf_gateway.proxy import Timeouts, request_head

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = Timeouts(connect_s=5.0, first_byte_s=0.2, idle_s=0.2)


def answering(*answers, then_close=False):
    """A script that gives one answer per request of a connection, in as many writes as it has parts."""

    async def script(reader, writer):
        for answer in answers:
            await read_request(reader)
            for part in answer if isinstance(answer, list) else [answer]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
        if not then_close:
            await reader.read()

    return script


async def read_request(reader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def fetch(pool, endpoint, method="POST", **options) -> tuple[int, bytes]:
    async with pool.request(endpoint, method, "/v1", (), b"{}", **options) as response:
        return response.status, await response.read()


class Ear:
    """A sink that keeps what it hears."""

    def __init__(self):
        self.heard = []
        self.over = asyncio.Event()

    def on_head(self, status, headers):
        self.heard.append(status)

    def on_body(self, data):
        self.heard.append(data)

    def on_end(self):
        self.heard.append("end")
        self.over.set()

    def on_error(self, error):
        self.heard.append(error)
        self.over.set()


def send(pool, endpoint, ear, **options):
    return pool.exchange(endpoint, request_head("POST", "/", b"e", (), 2), b"{}", ear, **options)
