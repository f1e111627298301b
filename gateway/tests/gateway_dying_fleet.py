"""Engines of tokens on loopback that die in the middle of what they say."""

import asyncio
from random import Random

from gateway_fixtures import chat
from gateway_raw_servers import STREAM_HEAD, chunk
from gateway_token_engine import TokenEngine, event, read

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Fleet:
    """Engines that answer with tokens; the n-th answer dies after `cuts[n]` bytes in the way of `endings[n]`."""

    def __init__(self, world, cuts, endings=("abort",), pause=0.0, most=1):
        self.world = world
        self.cuts = list(cuts)
        self.endings = list(endings) * len(self.cuts)
        self.answers = []
        self.pause = pause
        self.most = most
        for engine in world.engines:
            engine.script = self._script(engine)

    def _script(self, engine):
        async def script(seen, writer):
            number = len(self.answers)
            self.answers.append((engine.name, seen))
            events = TokenEngine(created=1 + number, most=self.most, merge=Random(number)).events(seen.path, seen.json)
            stream = b"".join(events)
            cut = self.cuts[number] if number < len(self.cuts) else None
            writer.write(STREAM_HEAD)
            data = stream if cut is None else stream[:cut]
            for start in range(0, len(data), 700):
                writer.write(chunk(data[start : start + 700]))
                await writer.drain()
                await asyncio.sleep(self.pause)
            if cut is None:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            else:
                await self._end(self.endings[number], writer)

        return script

    async def _end(self, ending, writer):
        await asyncio.sleep(0.02)
        if ending == "hang":
            await asyncio.sleep(30)
        elif ending == "error":
            writer.write(
                chunk(event({"error": {"message": "EngineDeadError", "type": "InternalServerError", "code": 500}}))
            )
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await writer.drain()
        elif ending == "end":
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            writer.transport.abort() if ending == "abort" else writer.close()

    @property
    def names(self):
        return [name for name, _ in self.answers]


def plain(path=CHAT, **more):
    body = {"model": "base", "stream": True, "max_tokens": 40, "temperature": 0, "ignore_eos": True, **more}
    return {**body, **({"messages": chat()["messages"]} if path == CHAT else {"prompt": "hello"})}


def whole(path, body):
    return read(b"".join(TokenEngine().events(path, {**body, "return_token_ids": None})))


def boundary(path, body, events):
    """Bytes of so many events as the first engine sends them."""
    return len(b"".join(TokenEngine().events(path, {**body, "return_token_ids": True})[:events]))


async def quiet(world):
    """Nothing is left on any book."""
    inference, router = world.gateway.inference, world.gateway.router
    await world.until(lambda: inference.admission.running("base") == 0)
    await world.until(lambda: all(ledger.running == 0 for ledger in router.ledgers.values()))
    assert inference.mending.purse.used == 0
    assert inference.mending.streams == {}
