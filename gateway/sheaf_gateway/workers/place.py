"""What a worker is told by its supervisor when it starts, and the words that they exchange after that.

Every worker inherits all listening sockets of the port, one for each worker, and accepts on its own. The supervisor
holds them, too: a socket outlives the worker that accepts on it, and with it the connections in its queue.
"""

import asyncio
import os
import socket
from pathlib import Path
from typing import Literal

import msgspec

MAX_LINE = 65_536

Word = Literal["listening", "ready", "adopt", "whole", "retire"]


class Place(msgspec.Struct, frozen=True):
    """Which of so many workers this is; `listening` are file descriptors by worker, `control` another one."""

    index: int
    count: int
    room: Path
    listening: tuple[int, ...]
    control: int

    @property
    def name(self) -> str:
        """A name that no other process in the room has."""
        return f"w{self.index}-{os.getpid()}"

    def socket_of(self, index: int) -> socket.socket:
        """The listening socket of a worker, as a file descriptor of its own."""
        return socket.socket(fileno=os.dup(self.listening[index]))


def read_place(text: str) -> Place:
    """What `Place` looks like as an argument."""
    return msgspec.json.decode(text, type=Place, dec_hook=lambda kind, value: kind(value))


class Told(msgspec.Struct, frozen=True):
    """One line on the control channel. `sockets`: those of other workers to accept on, in all."""

    word: Word
    sockets: tuple[int, ...] = ()


class Channel:
    """One end of the channel between supervisor and worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> "Channel":
        """Speak over this end of a socket pair."""
        return cls(*await asyncio.open_connection(sock=sock, limit=MAX_LINE))

    def say(self, word: Word, sockets: tuple[int, ...] = ()) -> None:
        """Tell the other side; nothing happens where it is gone."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(Told(word, sockets)) + b"\n")

    async def hear(self) -> Told | None:
        """What the other side says next; None once it is gone or says what nobody understands."""
        try:
            line = await self._reader.readuntil(b"\n")
            return msgspec.json.decode(line, type=Told)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, msgspec.MsgspecError):
            return None

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return
