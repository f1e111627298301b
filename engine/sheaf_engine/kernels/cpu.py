"""The multi-LoRA operator on CPU: ``reference.apply_reference`` in place, by the form that ``choice`` names.

A ``Step`` holds what one batch needs and all layers share; a ``Layer`` holds one layer's adapters. ``CpuKernels`` keeps
the scratch memory and the prepared calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sheaf_engine.kernels import grouped, openmp
from sheaf_engine.kernels.choice import gemm_from, workers
from sheaf_engine.kernels.layer import Layer
from sheaf_engine.kernels.segments import Segments, segment


@dataclass(eq=False)
class Step:
    """One batch's segments; ``split`` parts them by length once for all layers with the same crossover."""

    segments: Segments
    slots: frozenset[int] = field(init=False)
    end: int = field(init=False)
    _splits: "dict[int, tuple[Segments, list[int]]]" = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = frozenset(self.segments.slots.tolist())
        self.end = int(self.segments.tokens.max(initial=-1)) + 1

    def split(self, crossover: int) -> tuple[Segments, list[int]]:
        """The segments shorter than ``crossover`` as a batch of their own, and the numbers of the others."""
        if crossover not in self._splits:
            self._splits[crossover] = _split(self.segments, crossover)
        return self._splits[crossover]

    def rows_of(self, number: int) -> slice | torch.Tensor:
        """The batch rows of a segment: a slice where they are neighbours, an index tensor otherwise."""
        start, end = self.segments.starts[number : number + 2]
        return self.segments.slice_of(number) or torch.from_numpy(self.segments.tokens[start:end])


def _split(segments: Segments, crossover: int) -> tuple[Segments, list[int]]:
    lengths = segments.lengths()
    short = lengths < crossover
    if short.all():
        return segments, []
    starts = np.concatenate(([0], np.cumsum(lengths[short]))).astype(np.int64)
    kept = Segments(segments.tokens[np.repeat(short, lengths)], starts, segments.slots[short])
    return kept, np.flatnonzero(~short).tolist()


@dataclass(eq=False)
class Call:
    """A layer's arguments to the grouped kernel; everything that does not change between steps is filled in once."""

    layer: Layer
    offsets: np.ndarray
    crossover: int
    fields: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        layer, self.fields = self.layer, np.zeros(grouped.FIELDS, dtype=np.int64)
        self.fields[grouped.DEPTH] = layer.depth
        self.fields[grouped.SLICES] = layer.slices
        self.fields[grouped.CAPACITY] = layer.capacity
        for where, table in (
            (grouped.A_TABLE, layer.a_table),
            (grouped.B_TABLE, layer.b_table),
            (grouped.RANKS, layer.ranks),
            (grouped.B_ROWS, layer.b_rows),
            (grouped.WIDTHS, layer.widths),
            (grouped.OFFSETS, self.offsets),
        ):
            self.fields[where] = table.ctypes.data
        self.passes = grouped.compiled(layer.storage) if layer.storage and self.crossover else ()
        self.address = self.fields.ctypes.data
        self.outputs = int((self.offsets + layer.widths).max())
        self.scale = self.fields[grouped.SCALE_BITS :].view(np.float32)
        self.multiplications = layer.rank * (layer.depth * layer.slices + int(layer.widths.sum()))

    def check(self, y: torch.Tensor, x: torch.Tensor, step: Step) -> None:
        """Refuse what compiled code would read or write outside of these tensors.

        Raises:
            ValueError: said why.
        """
        if min(x.shape[0], y.shape[0]) < step.end:
            raise ValueError(f"the batch has {step.end} tokens: x has {x.shape[0]} rows and y {y.shape[0]}")
        if x.shape[1] != self.layer.depth or y.shape[1] < self.outputs:
            raise ValueError(
                f"x {tuple(x.shape)} and y {tuple(y.shape)} do not fit [{self.layer.depth}, {self.outputs}]"
            )
        if max(step.slots) >= self.layer.capacity:
            raise ValueError(f"slot {max(step.slots)} is behind the last of {self.layer.capacity}")

    def fill(self, segments: Segments, scale: float) -> None:
        """Point at a batch."""
        fields = self.fields
        fields[grouped.SEGMENTS] = len(segments)
        fields[grouped.TOKENS] = segments.tokens.ctypes.data
        fields[grouped.STARTS] = segments.starts.ctypes.data
        fields[grouped.SLOTS] = segments.slots.ctypes.data
        self.scale[0] = scale


class CpuKernels:
    """Applies adapters to batches; not for use from two threads at once.

    Args:
        compiled: use the just-in-time compiled kernel where it fits; without it everything is a matrix product.
    """

    def __init__(self, *, compiled: bool = True) -> None:
        self._compiled = compiled
        self._native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
        self._scratch = torch.empty(0)

    def step(self, slots: Sequence[int] | np.ndarray) -> Step:
        """Prepare a batch from the slot of each token (-1: no adapter)."""
        return Step(segment(slots))

    def call(self, layer: Layer, widths: Sequence[int] | None = None, offset: int = 0) -> Call:
        """Prepare a layer whose first slice goes to column ``offset`` and each next one ``widths`` further."""
        spans = [int(width) for width in (layer.widths if widths is None else widths)]
        offsets = np.cumsum([offset, *spans[:-1]], dtype=np.int64)
        crossover = gemm_from(
            grouped=self._compiled and layer.storage is not None,
            rank=layer.rank,
            float32=layer.dtype == torch.float32,
            bfloat16=layer.dtype == torch.bfloat16,
            native_bfloat16=self._native,
        )
        return Call(layer, offsets, crossover)

    def apply(self, call: Call, y: torch.Tensor, x: torch.Tensor, step: Step, scale: float = 1.0) -> None:
        """``y += scale * (x A) B`` in place; ``x`` is [T, H], ``y`` [T, outputs], rows of the step's batch.

        Raises:
            ValueError: the tensors do not fit the layer or the step.
        """
        if not step.slots:
            return
        layer = call.layer
        call.check(y, x, step)
        layer.refresh(step.slots)
        plain = layer.storage is None or not y.dtype == x.dtype == layer.dtype or y.stride(1) != 1
        short, long = step.split(0 if plain else call.crossover)
        if len(short):
            x = x if x.stride(1) == 1 else x.contiguous()
            self._grouped(call, y, x, short, scale)
        for number in long:
            slot = int(step.segments.slots[number])
            _gemm(layer, call.offsets, slot, y, x, step.rows_of(number), scale)

    def _grouped(self, call: Call, y: torch.Tensor, x: torch.Tensor, segments: Segments, scale: float) -> None:
        layer, fields = call.layer, call.fields
        call.fill(segments, scale)
        row = layer.slices * layer.rank
        v = self._floats(x.shape[0] * row)
        fields[grouped.X], fields[grouped.X_ROW] = x.data_ptr(), x.stride(0)
        fields[grouped.Y], fields[grouped.Y_ROW] = y.data_ptr(), y.stride(0)
        fields[grouped.V], fields[grouped.V_ROW], fields[grouped.V_SLICE] = v.data_ptr(), row, layer.rank
        team = workers(call.multiplications * len(segments.tokens), openmp.threads())
        for run in call.passes:
            fields[grouped.COUNTER] = 0
            openmp.run(run, call.address, team)

    def _floats(self, count: int) -> torch.Tensor:
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count, dtype=torch.float32)
        return self._scratch


def _gemm(
    layer: Layer,
    offsets: np.ndarray,
    slot: int,
    y: torch.Tensor,
    x: torch.Tensor,
    rows: slice | torch.Tensor,
    scale: float,
) -> None:
    """One segment by matrix products, with the adapter's true rank."""
    part = x[rows]
    for number, offset in enumerate(offsets.tolist()):
        rank = int(layer.ranks[number, slot])
        if rank == 0:
            continue
        a, b = layer.a[number][slot][:rank], layer.b[number][slot][:, :rank]
        target = y[:, offset : offset + b.shape[0]]
        if y.dtype == x.dtype == layer.dtype and isinstance(rows, slice):
            target[rows].addmm_(part @ a.T, b.T, alpha=scale)
        else:
            update = (part.float() @ a.float().T) @ b.float().T
            target[rows] = (target[rows].float() + scale * update).to(y.dtype)


def shrink(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, step: Step, scale: float) -> None:
    """Pass one alone, for adapters sharded over devices: ``y[t, :R] = scale * x[t] @ a[slot].T``.

    ``y`` is [T, R] float32, ``a`` [slots, 1, R, H]; rows of tokens without adapter become zero.
    """
    y.zero_()
    for number, slot in enumerate(step.segments.slots.tolist()):
        rows = step.rows_of(number)
        y[rows, : a.shape[-2]] = scale * (x[rows].float() @ a[slot].reshape(a.shape[-2:]).float().T)


def expand(y: torch.Tensor, x: torch.Tensor, b: torch.Tensor, step: Step, *, accumulate: bool = True) -> None:
    """Pass two alone: ``y[t, :O] += x[t] @ b[slot].T``, or ``=`` without ``accumulate`` (zero where no adapter is).

    ``x`` is [T, R], ``b`` [slots, 1, O, R], ``y`` [T, at most O].
    """
    if not accumulate:
        y.zero_()
    for number, slot in enumerate(step.segments.slots.tolist()):
        rows = step.rows_of(number)
        matrix = b[slot].reshape(b.shape[-2:])[: y.shape[1]].float()
        y[rows] = (y[rows].float() + x[rows].float() @ matrix.T).to(y.dtype)
