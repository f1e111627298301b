"""The shape table: Punica's four popularity shapes, batches of decode and prefill, ranks, real models' projections."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

MIXED = (8, 16, 32, 64, 128)
PROJECTIONS = {
    "8B qkv": (4096, (4096, 1024, 1024)),
    "8B gate_up": (4096, (14336, 14336)),
    "7B o": (4096, (4096,)),
    "70B o": (8192, (8192,)),
}
POPULARITY = ("distinct", "identical", "uniform", "zipf")
ZIPF_ALPHA = 1.5


@dataclass(frozen=True)
class Shape:
    """One cell: ``tokens`` is the batch, in ``requests`` equal requests; ``rank`` 0 means ``MIXED`` in turn."""

    phase: str
    tokens: int
    requests: int
    popularity: str
    rank: int
    projection: str

    @property
    def hidden(self) -> int:
        """The projection's input size."""
        return PROJECTIONS[self.projection][0]

    @property
    def widths(self) -> tuple[int, ...]:
        """The output sizes of its slices."""
        return PROJECTIONS[self.projection][1]

    @property
    def max_rank(self) -> int:
        """What slots are padded to."""
        return self.rank or max(MIXED)

    def ranks(self, adapters: int) -> list[int]:
        """The true rank of each adapter."""
        return [self.rank or MIXED[i % len(MIXED)] for i in range(adapters)]


def adapters_of_requests(popularity: str, requests: int, seed: int = 0) -> list[int]:
    """Which adapter each request uses, numbered from 0: Punica's (MLSys 2024) distinct, identical, uniform, zipf."""
    if popularity == "distinct":
        return list(range(requests))
    if popularity == "identical":
        return [0] * requests
    rng = np.random.default_rng(seed)
    kinds = max(1, int(np.ceil(np.sqrt(requests))))
    weights = np.ones(kinds) if popularity == "uniform" else ZIPF_ALPHA ** -np.arange(kinds)
    return [int(kind) for kind in rng.choice(kinds, size=requests, p=weights / weights.sum())]


def slots_of_tokens(shape: Shape) -> list[int]:
    """The adapter of each token of the batch."""
    each = shape.tokens // shape.requests
    return [adapter for adapter in adapters_of_requests(shape.popularity, shape.requests) for _ in range(each)]


def table(*, quick: bool) -> list[Shape]:
    """All cells, or few that show the same in a minute."""
    return [*_decode(quick=quick), *_prefill(quick=quick)]


def _decode(*, quick: bool) -> Iterator[Shape]:
    tokens: Sequence[int] = (1, 16) if quick else (1, 8, 64)
    ranks: Sequence[int] = (16, 0) if quick else (8, 16, 64, 0)
    projections: Sequence[str] = ("8B qkv",) if quick else ("8B qkv", "70B o")
    for count, popularity, rank, projection in product(tokens, POPULARITY, ranks, projections):
        if count > 1 or popularity == "distinct":
            yield Shape("decode", count, count, popularity, rank, projection)
    if not quick:
        yield Shape("decode", 256, 256, "distinct", 8, "7B o")
        yield Shape("decode", 256, 256, "uniform", 16, "7B o")
        yield Shape("decode", 16, 16, "distinct", 128, "8B gate_up")


def _prefill(*, quick: bool) -> Iterator[Shape]:
    tokens: Sequence[int] = (512,) if quick else (128, 512)
    ranks: Sequence[int] = (16,) if quick else (8, 16, 64, 0)
    popularity = ("distinct", "identical", "zipf")
    for count, kind, rank in product(tokens, popularity, ranks):
        yield Shape("prefill", count, 4, kind, rank, "7B o")
    if not quick:
        for kind in popularity:
            yield Shape("prefill", 256, 4, kind, 16, "8B qkv")
        yield Shape("prefill", 512, 2, "distinct", 128, "7B o")
        yield Shape("prefill", 256, 2, "distinct", 16, "70B o")
