"""What one gateway tells the others, as bytes: one batch is one datagram.

A batch is one msgpack array with a column for each kind of news. A receiver works the columns in from left to right,
so that an attempt which began, was answered and ended within one batch comes and goes in that order. Everything that
can be lost for good without harm is told once (prefixes); everything that would be wrong for ever is either numbered
(attempts, so that a gap is seen and a summary asked for) or told as a running total (doors, service, limits), of which
the next one mends what was lost.

Texts are told once for each life of a gateway and named by number after that. Whatever is beyond a bound here is
refused as a whole: a batch comes from outside.
"""

import struct
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

VERSION = 1
MAX_CHAIN = 4_096
PIECE = 128
MAX_NAMES = 65_536
MAX_TEXT = 1_024
_MAX_ITEMS = 65_536
_MAX_COUNT = 2**53
_HASH = 8

Number = Annotated[int, Meta(ge=0, le=_MAX_COUNT)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Amount = Annotated[float, Meta(ge=-1e15, le=1e15)]
Chain = Annotated[bytes, Meta(max_length=_HASH * PIECE)]


class BadBatchError(ValueError):
    """Bytes that are no batch."""


class _Item(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """An entry of a column."""


class Name(_Item, frozen=True):
    """A text (a pod, a Model, an adapter, a tenant, a scope) and the number that stands for it from now on."""

    number: Number
    text: Text


class Piece(_Item, frozen=True):
    """Further hashes of a long prompt, told before the attempt itself and from the end to the beginning, so that what
    was lost is never in the middle."""

    attempt: Number
    chain: Chain


class Sent(_Item, frozen=True):
    """An attempt on a pod. `tokens` are to be computed, `held` are all of its prompt; `adapter` 0: none."""

    attempt: Number
    pod: Number
    epoch: Number
    model: Number
    adapter: Number
    tokens: Number
    held: Number
    exact: bool = False
    answered: bool = False
    chain: Chain = b""


class Door(_Item, frozen=True):
    """The requests of a Model that this gateway has let in, and those that wait at its door; in all, not since."""

    model: Number
    running: Number
    waiting: Number


class Service(_Item, frozen=True):
    """What this gateway served a tenant of a Model since it began, in virtual tokens, and the tenant's weight."""

    model: Number
    tenant: Number
    total: Amount
    weight: Annotated[float, Meta(gt=0, le=1e9)]


class Used(_Item, frozen=True):
    """What was charged to the limits of a scope since this gateway began, and its requests under way."""

    scope: Number
    requests: Number
    tokens: Amount
    running: Number


class Broke(_Item, frozen=True):
    """The breaker of a pod opened, or closed again."""

    pod: Number
    open: bool


class Turned(_Item, frozen=True):
    """A turn of a session is over on a pod: the last of its prompt's `blocks` hashes, the prompt's bytes, the answer's.
    The session is a hash of the caller's name for it (see `routing.sessions`)."""

    session: Number
    pod: Number
    epoch: Number
    tip: Annotated[bytes, Meta(min_length=_HASH, max_length=_HASH)]
    blocks: Number
    size: Number
    answer: Number


class Batch(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """News of one gateway in one `life`, the `number`-th since it began; `at` is Unix time in seconds.

    `live` counts its attempts under way after this batch, where `whole` says that all of them have been told by now.
    `anew` begins a summary: forget its attempts, they are told again. `wanted` are lives whose summary it lacks.
    `leaving` says that this is its last word.
    """

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    life: Number
    number: Number
    at: Annotated[float, Meta(ge=0, le=1e12)]
    live: Number
    whole: bool = True
    anew: bool = False
    leaving: bool = False
    names: Annotated[list[Name], Meta(max_length=_MAX_ITEMS)] = []
    pieces: Annotated[list[Piece], Meta(max_length=_MAX_ITEMS)] = []
    sent: Annotated[list[Sent], Meta(max_length=_MAX_ITEMS)] = []
    answered: Annotated[list[Number], Meta(max_length=_MAX_ITEMS)] = []
    finished: Annotated[list[Number], Meta(max_length=_MAX_ITEMS)] = []
    doors: Annotated[list[Door], Meta(max_length=_MAX_ITEMS)] = []
    service: Annotated[list[Service], Meta(max_length=_MAX_ITEMS)] = []
    used: Annotated[list[Used], Meta(max_length=_MAX_ITEMS)] = []
    breakers: Annotated[list[Broke], Meta(max_length=_MAX_ITEMS)] = []
    wanted: Annotated[list[Number], Meta(max_length=_MAX_ITEMS)] = []
    turned: Annotated[list[Turned], Meta(max_length=_MAX_ITEMS)] = []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode(batch: Batch) -> bytes:
    """The batch as bytes."""
    return _encoder.encode(batch)


def decode(data: bytes) -> Batch:
    """The batch that these bytes are.

    Raises:
        BadBatchError: They are none, or of another version.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadBatchError(str(error)) from None


def packed(chain: Sequence[int]) -> bytes:
    """Hashes of 64 bits, eight bytes each."""
    return struct.pack(f"<{len(chain)}Q", *chain)


def unpacked(data: bytes) -> list[int]:
    """The hashes again; a rest of less than eight bytes is left out."""
    count = len(data) // _HASH
    return list(struct.unpack_from(f"<{count}Q", data))
