"""Segments of a batch: the tokens of each adapter side by side, worked out once per step and used by all layers.

Pure: from the slot of each token to index arrays. Tokens without adapter (slot -1) appear in no segment, so they cost
nothing later. The order inside a segment is the order in the batch; a segment whose tokens are neighbours in the batch
is a plain slice of it, which spares a gather.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segments:
    """S segments over N tokens: segment s is ``tokens[starts[s]:starts[s + 1]]``, all using adapter ``slots[s]``.

    ``tokens`` [N] are rows of the batch; ``starts`` [S + 1] begins with 0 and ends with N; ``slots`` [S] is ascending.
    """

    tokens: Indices
    starts: Indices
    slots: Indices

    def __len__(self) -> int:
        return len(self.slots)

    def lengths(self) -> Indices:
        """Tokens in each segment, [S]."""
        return np.diff(self.starts)

    def slice_of(self, segment: int) -> slice | None:
        """The rows of a segment as a slice of the batch, or None if other tokens lie between them."""
        rows = self.tokens[self.starts[segment] : self.starts[segment + 1]]
        first, last = int(rows[0]), int(rows[-1])
        return slice(first, last + 1) if last - first + 1 == len(rows) else None


def segment(slots: Sequence[int] | Indices) -> Segments:
    """Group the tokens of a batch by adapter.

    Args:
        slots: [T] the slot of each token, -1 (any negative number) for none; in any order.
    """
    of_token = np.asarray(slots, dtype=np.int64)
    order = np.argsort(of_token, kind="stable")
    tokens = order[np.searchsorted(of_token[order], 0) :].astype(np.int64, copy=False)
    sorted_slots = of_token[tokens]
    changes = np.flatnonzero(np.diff(sorted_slots, prepend=-1))
    starts = np.append(changes, len(tokens)).astype(np.int64, copy=False)
    return Segments(tokens=tokens, starts=starts, slots=sorted_slots[changes])
