"""The adapters of one layer as the CPU kernels see them: matrices by slice and slot, their addresses and true ranks.

Slots are padded to the largest rank that the engine allows; the true rank of an adapter is found from its own numbers
(rows of A behind it are zero) and kept until the tensors change, which torch counts for every tensor (``_version``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sheaf_engine.kernels import grouped

STORAGE: dict[torch.dtype, grouped.Storage] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
UNKNOWN = -1


@dataclass(eq=False)
class Layer:
    """``a[c][i]`` is [R, H], ``b[c][i]`` is [O_c, R] of slice c, slot i; R may exceed the adapter's true rank.

    The tensors may lie anywhere in memory. ``a`` or ``b`` may be stacked tensors [slots, R, H] and [slots, O, R] or
    sequences of matrices, one a slot.

    Raises:
        ValueError: the slices disagree on slots, hidden size or rank.
    """

    a: Sequence[Sequence[torch.Tensor]]
    b: Sequence[Sequence[torch.Tensor]]
    watched: tuple[torch.Tensor, ...]
    ranks: np.ndarray = field(init=False)
    _known: set[int] = field(init=False, default_factory=set)
    _version: int = field(init=False, default=UNKNOWN)

    def __post_init__(self) -> None:
        self._check()
        self.slices, self.capacity = len(self.a), len(self.a[0])
        self.depth = self.a[0][0].shape[1]
        self.rank = max(matrix.shape[0] for slot in self.a for matrix in slot)
        self.dtype = self.a[0][0].dtype
        self.widths = np.array([slots[0].shape[0] for slots in self.b], dtype=np.int64)
        self.b_rows = np.array([slots[0].stride(0) for slots in self.b], dtype=np.int64)
        self.ranks = np.full((self.slices, self.capacity), UNKNOWN, dtype=np.int64)
        self.a_table = _addresses(self.a)
        self.b_table = _addresses(self.b)
        self.storage = STORAGE.get(self.dtype) if self._fits() else None

    @classmethod
    def stacked(cls, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> "Layer":
        """From vLLM's tensors: for each slice [slots, 1, R, H] and [slots, 1, O, R], or the same without the 1."""
        rows = [tensor.squeeze(1) if tensor.ndim == 4 else tensor for tensor in (*a, *b)]
        return cls([t.unbind(0) for t in rows[: len(a)]], [t.unbind(0) for t in rows[len(a) :]], (*a, *b))

    @classmethod
    def scattered(cls, a: Sequence[Sequence[torch.Tensor]], b: Sequence[Sequence[torch.Tensor]]) -> "Layer":
        """From matrices that lie anywhere, one a slice and slot."""
        return cls(a, b, tuple(matrix for slots in (*a, *b) for matrix in slots))

    def refresh(self, slots: Iterable[int]) -> None:
        """Make ``ranks[:, slot]`` true for these slots."""
        version = sum(tensor._version for tensor in self.watched)  # noqa: SLF001
        if version != self._version:
            self._version = version
            self._known.clear()
        for slot in set(slots) - self._known:
            self.ranks[:, slot] = [true_rank(matrices[slot]) for matrices in self.a]
            self._known.add(slot)

    def _check(self) -> None:
        if not self.a or len(self.a) != len(self.b):
            raise ValueError(f"{len(self.a)} slices of A and {len(self.b)} of B: give one B for each A")
        if len({len(slots) for slots in (*self.a, *self.b)}) != 1:
            raise ValueError("slices hold different numbers of slots: give every slice the same slots")
        depths = {matrix.shape[1] for slots in self.a for matrix in slots}
        if len(depths) != 1:
            raise ValueError(f"A matrices have hidden sizes {sorted(depths)}: they must agree")
        for slots_a, slots_b in zip(self.a, self.b, strict=True):
            if any(a.shape[0] != b.shape[1] for a, b in zip(slots_a, slots_b, strict=True)):
                raise ValueError("an A has another rank than its B: shapes are [R, H] and [O, R]")

    def _fits(self) -> bool:
        """Whether the compiled kernel can take these adapters (see ``micro`` for the widths)."""
        every_a = [matrix for slots in self.a for matrix in slots]
        every_b = [matrix for slots in self.b for matrix in slots]
        return (
            {matrix.dtype for matrix in (*every_a, *every_b)} == {self.dtype}
            and self.depth % 16 == 0
            and all(m.shape[0] % 8 == 0 and m.shape[0] <= grouped.MAX_RANK and m.is_contiguous() for m in every_a)
            and all(m.shape[0] % 8 == 0 and m.stride(1) == 1 for m in every_b)
            and all(len({(m.stride(0), m.shape[0]) for m in slots}) == 1 for slots in self.b)
        )


def true_rank(a: torch.Tensor) -> int:
    """One more than the last row of ``a`` [R, H] that is not all zero; 0 for an empty slot."""
    if bool(a[-1, :16].any()):
        return int(a.shape[0])
    used = torch.nonzero(a.ne(0).any(dim=1))
    return int(used[-1]) + 1 if len(used) else 0


def _addresses(matrices: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    return np.array([[matrix.data_ptr() for matrix in slots] for slots in matrices], dtype=np.int64)
