"""Questions between the workers of one machine: one line over a Unix socket, answered by bytes until the end.

It is how one worker answers for all. Who does not answer within `PATIENCE_S` is left out: for people a figure that
lacks a worker is better than none. For who scales it is not, and asks for the answers of all.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

PATIENCE_S = 1.0
MAX_ANSWER = 64 * 2**20
_MAX_QUESTION = 4_096
_SUFFIX = ".ask"
_GONE = (ConnectionRefusedError, FileNotFoundError)

Answer = Callable[[str], bytes]


class Colleagues:
    """The other workers: whom to ask, and what to answer them."""

    def __init__(self, room: Path, name: str, index: int, answer: Answer) -> None:
        self.index = index
        self.open = False
        self._room = room
        self._path = room / f"{name}{_SUFFIX}"
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Answer from now on."""
        self._server = await asyncio.start_unix_server(self._talk, self._path, limit=_MAX_QUESTION)
        self.open = True

    async def close(self) -> None:
        """Answer no more."""
        self.open = False
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._path.unlink(missing_ok=True)
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def ask(self, question: str, *, all_of_them: bool = False) -> list[bytes]:
        """What the others answer, those who do.

        Raises:
            TimeoutError: `all_of_them` are asked for, and one that is there does not answer.
        """
        with contextlib.suppress(FileNotFoundError), os.scandir(self._room) as found:
            others = [entry.path for entry in found if entry.name.endswith(_SUFFIX) and entry.name != self._path.name]
            heard = await asyncio.gather(*(_asked(path, question) for path in sorted(others)), return_exceptions=True)
            if all_of_them and not all(isinstance(each, _GONE) or (each and isinstance(each, bytes)) for each in heard):
                raise TimeoutError("a worker does not say what it knows")
            return [each for each in heard if isinstance(each, bytes)]
        return []

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._talks.add(task)
            task.add_done_callback(self._talks.discard)
        try:
            async with asyncio.timeout(PATIENCE_S):
                question = (await reader.readuntil(b"\n")).decode().rstrip("\n")
                writer.write(self._answer(question))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, TimeoutError, UnicodeDecodeError):
            writer.transport.abort()
        except Exception:
            log.exception("colleague_not_answered")
            writer.transport.abort()
        finally:
            writer.close()


async def _asked(path: str, question: str) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(question.encode() + b"\n")
            return await _whole(reader)
        finally:
            writer.transport.abort()


async def _whole(reader: asyncio.StreamReader) -> bytes:
    pieces, size = [], 0
    while piece := await reader.read(65_536):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_ANSWER:
            raise EOFError("an answer without end")
    return b"".join(pieces)
