"""What can be made to go wrong, for tests of whatever stands in front: ``--fault KIND:NUMBER``.

======== ==========================================================================
die      the process exits at once (status 137) after NUMBER chunks of streams
hang     every stream falls silent after NUMBER chunks and stays open
reset    every stream's connection is dropped after NUMBER chunks
garbage  every stream's chunk NUMBER is not SSE
slow     every step takes NUMBER seconds more
======== ==========================================================================
"""

from __future__ import annotations

import asyncio
import os
from typing import Literal, cast, get_args

Kind = Literal["die", "hang", "reset", "garbage", "slow"]


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
