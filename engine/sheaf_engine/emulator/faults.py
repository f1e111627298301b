"""What can be made to go wrong, for tests of whatever stands in front: ``--fault KIND:NUMBER``, or, where ``--faults``
allows it, ``POST /faults`` while the emulator runs.

======== ==========================================================================
die      the process exits at once (status 137) after NUMBER chunks of streams
hang     every stream falls silent after NUMBER chunks and stays open
reset    every stream's connection is dropped after NUMBER chunks
garbage  every stream's chunk NUMBER is not SSE
cut      every stream's connection is dropped in the middle of chunk NUMBER
dribble  every stream's chunks come byte by byte, NUMBER seconds apart
slow     every step takes NUMBER seconds more
metrics  /metrics says that NUMBER requests run, whatever is so
======== ==========================================================================
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from typing import Literal, cast, get_args

Kind = Literal["die", "hang", "reset", "garbage", "cut", "dribble", "slow", "metrics"]
_RUNNING = re.compile(rb"^(vllm:num_requests_running\{[^}]*\}) .*$", re.MULTILINE)


class StreamResetError(Exception):
    """The connection is to be dropped."""


class Fault:
    """One fault, counting what it has seen."""

    def __init__(self, kind: Kind, number: float) -> None:
        self.kind = kind
        self.number = number
        self._chunks = 0

    @staticmethod
    def parse(text: str) -> Fault:
        """Read ``KIND:NUMBER``.

        Raises:
            ValueError: naming the kinds.
        """
        kind, _, number = text.partition(":")
        if kind not in get_args(Kind):
            raise ValueError(f"{text!r} is not KIND:NUMBER with KIND one of {', '.join(get_args(Kind))}")
        try:
            return Fault(cast("Kind", kind), max(0.0, float(number)))
        except ValueError:
            raise ValueError(f"{text!r} needs a number after the colon") from None

    @property
    def delay(self) -> float:
        """Seconds to add to every step."""
        return self.number if self.kind == "slow" else 0.0

    def page(self, metrics: bytes) -> bytes:
        """What to tell in place of a page of metrics."""
        return _RUNNING.sub(rb"\1 %g" % self.number, metrics) if self.kind == "metrics" else metrics

    async def deliver(self, chunk: bytes, number: int, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Send a stream's chunk `number`, counted from 1, by `write`, as the fault has it.

        Raises:
            StreamResetError: when the connection is to be dropped.
        """
        chunk = await self.spoil(chunk, number)
        if self.kind == "cut" and number >= self.number:
            await write(chunk[: len(chunk) // 2])
            raise StreamResetError
        if self.kind != "dribble":
            await write(chunk)
            return
        for place in range(len(chunk)):
            await write(chunk[place : place + 1])
            await asyncio.sleep(self.number)

    async def spoil(self, chunk: bytes, number: int) -> bytes:
        """What to send in place of a stream's chunk `number`, counted from 1; may never return.

        Raises:
            StreamResetError: when the connection is to be dropped.
        """
        self._chunks += 1
        if self.kind == "die" and self._chunks > self.number:
            os._exit(137)
        if self.kind == "garbage" and number == int(self.number):
            return b"\xff\xfe not an event \x00\r\r"
        if number > self.number:
            await self._break()
        return chunk

    async def _break(self) -> None:
        if self.kind == "reset":
            raise StreamResetError
        if self.kind == "hang":
            await asyncio.Event().wait()
