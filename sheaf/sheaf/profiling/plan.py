"""Which requests show what an engine's steps cost, and what their answers' times say. Pure: times are arguments.

Prompts of several lengths, each alone, give first tokens; batches of several sizes, of short and of long prompts, give
decode steps. All are asked in turn, round after round, so that an engine that slows down does so for all alike.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from sheaf_engine.timing.fitting import Decoding, FirstToken

SHORTEST, LONGEST = 64, 2048
OUTPUT = 32
ROUNDS = 5
LONG_BATCH = 1024
FEWEST_STEPS = 4
FEWEST_CHUNKS = 4
BURST = 0.02


class NotStreamedError(ValueError):
    """An answer did not come token by token."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Requests that are sent together: one for each name in `models`, of so many prompt tokens."""

    tokens: int
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer: when it was asked for, when each chunk came, and how many tokens its usage counts."""

    sent: float
    chunks: Sequence[float]
    prompt: int
    cached: int
    output: int

    @property
    def each(self) -> float:
        """Tokens in a chunk."""
        return self.output / len(self.chunks)


def probes(base: str, adapters: Sequence[str], longest: int, concurrency: int) -> Iterator[Probe]:
    """What to ask, in order; first of all every adapter twice, alone: as it was found, and when it surely is loaded.

    Args:
        base: name of the base model.
        adapters: names of adapters, maybe none.
        longest: tokens of the longest prompt.
        concurrency: requests at once at most, 2 or more.
    """
    for name in adapters:
        yield Probe(SHORTEST, (name,))
        yield Probe(SHORTEST, (name,))
    longer = max(length for length in lengths(longest) if length <= LONG_BATCH)
    for _ in range(ROUNDS):
        yield from (Probe(tokens, (base,)) for tokens in lengths(longest))
        for tokens in (SHORTEST, longer):
            yield from _batches(tokens, base, adapters, concurrency)


def lengths(longest: int) -> list[int]:
    """Prompt lengths from the shortest on, each twice the one before."""
    found = [SHORTEST]
    while found[-1] * 2 <= longest:
        found.append(found[-1] * 2)
    return found


def first_token(stream: Stream) -> FirstToken:
    """What an answer that came alone says of prefill.

    Raises:
        NotStreamedError: where all of it came at once.
    """
    whole, came = stream.chunks[-1] - stream.sent, stream.chunks[-1] - stream.chunks[0]
    if len(stream.chunks) < FEWEST_CHUNKS or came < BURST * whole:
        raise NotStreamedError(f"{stream.output} tokens came in {len(stream.chunks)} chunks within {came * 1e3:.1f} ms")
    return FirstToken(stream.prompt - stream.cached, stream.cached, stream.chunks[0] - stream.sent)


def decoding(streams: Sequence[Stream], models: Sequence[str], base: str, rank: int) -> Decoding | None:
    """What answers that came together say of decode steps; None where they hardly did.

    Only the time counts in which all of them decode, and of the streams the median one: a chunk that is late makes the
    next one early.
    """
    begin, end = max(one.chunks[0] for one in streams), min(one.chunks[-1] for one in streams)
    counts = [bisect_right(one.chunks, end) - bisect_left(one.chunks, begin) for one in streams]
    if end <= begin or min(counts) <= FEWEST_STEPS:
        return None
    seconds = median(_step(one, begin, end) for one in streams)
    context = sum(one.prompt + _before(one, (begin + end) / 2) for one in streams)
    adapted = [name for name in models if name != base]
    return Decoding(len(streams), context, seconds, len(set(adapted)), rank * len(adapted))


def _batches(tokens: int, base: str, adapters: Sequence[str], concurrency: int) -> Iterator[Probe]:
    size = 2
    while size <= concurrency:
        yield Probe(tokens, (base,) * size)
        size *= 2
    if adapters:
        yield Probe(tokens, (adapters[0],) * 2)
        yield Probe(tokens, (adapters[0],) * concurrency)
        yield Probe(tokens, tuple(adapters[place % len(adapters)] for place in range(concurrency)))


def _step(stream: Stream, begin: float, end: float) -> float:
    inside = stream.chunks[bisect_left(stream.chunks, begin) : bisect_right(stream.chunks, end)]
    return (inside[-1] - inside[0]) / (len(inside) - 1) / stream.each


def _before(stream: Stream, time: float) -> float:
    return bisect_right(stream.chunks, time) * stream.each
