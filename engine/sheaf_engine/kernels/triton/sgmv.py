"""The operator on a GPU: ``reference.apply_reference`` in place, from a ``Batch`` and a ``DeviceLayer``.

No call waits for the device or reads from it, and what a launch looks like depends on the number of tokens alone, so a
captured CUDA graph stays right when the adapters of its tokens, their ranks or the slots' contents change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from sheaf_engine.kernels.triton.kernels import expand_kernel, fused_kernel, shrink_kernel
from sheaf_engine.kernels.triton.plan import Plan
from sheaf_engine.kernels.triton.tiles import Tiles, block_sizes, is_long, tiles_for

MAX_RANK = 512
INTERPRETED = not isinstance(shrink_kernel, triton.JITFunction)


@dataclass(eq=False)
class Batch:
    """The work lists of a batch, one for each tile height: a graph padded to more tokens may want the taller one."""

    short: Plan
    long: Plan

    @classmethod
    def make(cls, max_tokens: int, capacity: int, device: torch.device | str) -> "Batch":
        """Room for batches of up to ``max_tokens`` over ``capacity`` slots."""
        low, high = block_sizes()
        return cls(Plan.make(max_tokens, capacity, low, device), Plan.make(max_tokens, capacity, high, device))

    def build(self, slots: torch.Tensor) -> None:
        """Sort a batch by adapter: ``slots`` [T] on the device, negative for none."""
        self.short.build(slots)
        self.long.build(slots)

    def plan(self, tokens: int) -> Plan:
        """The list for a launch over ``tokens`` rows."""
        return self.long if is_long(tokens) else self.short


@dataclass(eq=False)
class DeviceLayer:
    """One layer's adapters on the device: tables [slices, slots] of addresses and true ranks, int64 and int32.

    The stacked tensors are [slots, 1, R, H] and [slots, 1, O, R], one of each for every slice; slices share R and H.

    Raises:
        ValueError: the tensors do not have this form.
    """

    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        _check(self.a, self.b)
        self.slices, self.capacity = len(self.a), self.a[0].shape[0]
        self.rank, self.depth = self.a[0].shape[-2:]
        self.dtype, self.device = self.a[0].dtype, self.a[0].device
        self.width = max(matrix.shape[-2] for matrix in self.b)
        self.a_table, self.b_table = self._addresses(self.a), self._addresses(self.b)
        self.widths = self._numbers([matrix.shape[-2] for matrix in self.b])
        self.ranks = torch.full((self.slices, self.capacity), self.rank, dtype=torch.int32, device=self.device)
        self._version = -1
        self.refresh()

    def refresh(self) -> None:
        """Find the true ranks again if an adapter was loaded or evicted; on the device, without waiting."""
        version = sum(matrix._version for matrix in self.a)  # noqa: SLF001
        if version != self._version:
            self._version = version
            rows = torch.arange(1, self.rank + 1, dtype=torch.int32, device=self.device)
            for ranks, matrix in zip(self.ranks, self.a, strict=True):
                used = matrix.reshape(self.capacity, self.rank, self.depth).ne(0).any(dim=2)
                ranks.copy_((used * rows).amax(dim=1))

    def _addresses(self, stacked: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = [[matrix[slot].data_ptr() for slot in range(self.capacity)] for matrix in stacked]
        return torch.tensor(rows, dtype=torch.int64, device=self.device)

    def _numbers(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


def _check(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
    if not a or len(a) != len(b):
        raise ValueError(f"{len(a)} slices of A and {len(b)} of B: give one B for each A")
    if len({(m.shape[0], *m.shape[-2:], m.dtype) for m in a}) != 1:
        raise ValueError("slices of A differ in slots, rank, hidden size or type")
    if {(m.shape[0], m.shape[-1], m.dtype) for m in b} != {(a[0].shape[0], a[0].shape[-2], a[0].dtype)}:
        raise ValueError("a slice of B differs from its A in slots, rank or type")
    if not all(matrix.is_contiguous() for matrix in (*a, *b)) or a[0].shape[-2] > MAX_RANK:
        raise ValueError(f"stacked adapters must be contiguous and of rank {MAX_RANK} at most")


@dataclass(eq=False)
class Sgmv:
    """The operator for one layer; ``offsets`` are the output columns where its slices begin, on the device.

    Args:
        layer: the adapters.
        output_slices: how far each slice's columns reach.
        programs: how many programs a launch has, usually a small multiple of the device's multiprocessors.
    """

    layer: DeviceLayer
    output_slices: tuple[int, ...]
    programs: int

    def __post_init__(self) -> None:
        begin = [sum(self.output_slices[:number]) for number in range(len(self.output_slices))]
        self.offsets = torch.tensor(begin, dtype=torch.int64, device=self.layer.device)

    def apply(
        self, y: torch.Tensor, x: torch.Tensor, batch: Batch, scale: float = 1.0, tiles: Tiles | None = None
    ) -> None:
        """``y += scale * (x A) B`` in place; ``x`` [T, H], ``y`` [T, outputs], rows of the batch, unit inner stride."""
        tiles = tiles or tiles_for(x.shape[0], self.layer.rank)
        plan = batch.plan(x.shape[0])
        if tiles.mode == "fused" and self.layer.rank <= tiles.block_r:
            self._fused(y, x, plan, scale, tiles)
        else:
            self._split(y, x, plan, scale, tiles)

    def _fused(self, y: torch.Tensor, x: torch.Tensor, plan: Plan, scale: float, tiles: Tiles) -> None:
        layer = self.layer
        fused_kernel[(self.programs,)](
            x,
            y,
            layer.a_table,
            layer.b_table,
            layer.ranks,
            layer.widths,
            self.offsets,
            *_lists(plan),
            scale,
            x.stride(0),
            y.stride(0),
            layer.rank,
            layer.depth,
            layer.capacity,
            SLICES=layer.slices,
            SPLIT_N=tiles.split,
            BLOCK_M=plan.block_m,
            BLOCK_R=tiles.block_r,
            BLOCK_K=tiles.block_k,
            BLOCK_N=tiles.block_n,
            WIDEN=INTERPRETED,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )

    def _split(self, y: torch.Tensor, x: torch.Tensor, plan: Plan, scale: float, tiles: Tiles) -> None:
        layer, split = self.layer, tiles.split if tiles.mode == "split" else 1
        shape = (split, layer.slices, x.shape[0], layer.rank)
        v = torch.empty(shape, dtype=torch.float32, device=x.device)
        strides = (v.stride(0), v.stride(1), v.stride(2))
        common = {"SLICES": layer.slices, "SPLIT_K": split, "BLOCK_M": plan.block_m, "BLOCK_R": tiles.block_r}
        launch = {"WIDEN": INTERPRETED, "num_warps": tiles.warps, "num_stages": tiles.stages}
        blocks = triton.cdiv(layer.rank, tiles.block_r)
        shrink_kernel[(self.programs,)](
            *(
                x,
                v,
                layer.a_table,
                layer.ranks,
                *_lists(plan),
                scale,
                x.stride(0),
                layer.depth,
                *strides,
                layer.capacity,
            ),
            RANK_BLOCKS=blocks,
            BLOCK_K=tiles.block_k,
            **common,
            **launch,
        )
        tables = (layer.b_table, layer.ranks, layer.widths, self.offsets)
        columns = triton.cdiv(layer.width, tiles.block_n)
        expand_kernel[(self.programs,)](
            *(y, v, *tables, *_lists(plan), y.stride(0), layer.rank, *strides, layer.capacity),
            COLUMN_BLOCKS=columns,
            BLOCK_N=tiles.block_n,
            **common,
            **launch,
        )


def _lists(plan: Plan) -> tuple[torch.Tensor, ...]:
    return plan.order, plan.slot, plan.first, plan.count, plan.tiles


class TritonKernels:
    """Applies adapters to batches on one device: what a wrapper of an engine needs.

    Args:
        max_tokens: the most tokens a batch has.
        capacity: how many slots there are.
        device: where the tensors are.
        programs: how many programs a launch has; by default four for each multiprocessor.
    """

    def __init__(self, max_tokens: int, capacity: int, device: torch.device | str, programs: int | None = None) -> None:
        self._batch = Batch.make(max_tokens, capacity, device)
        self._programs = programs or 4 * torch.cuda.get_device_properties(device).multi_processor_count
        self._layers: dict[tuple[int, ...], Sgmv | None] = {}

    def step(self, slots: torch.Tensor) -> None:
        """Prepare a batch: ``slots`` [T] on the device, negative for none. Finds the ranks of new adapters too."""
        self._batch.build(slots)
        for sgmv in self._layers.values():
            if sgmv is not None:
                sgmv.layer.refresh()

    def linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a: Sequence[torch.Tensor],
        b: Sequence[torch.Tensor],
        scale: float,
        slices: Sequence[int],
    ) -> bool:
        """``y += scale * (x A) B`` in place; False, with ``y`` as it was, if these tensors are not supported."""
        sgmv = self._layer(a, b, slices)
        if sgmv is None or not x.dtype == y.dtype == sgmv.layer.dtype or x.stride(-1) != 1 or y.stride(-1) != 1:
            return False
        sgmv.apply(y, x, self._batch, scale)
        return True

    def _layer(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], slices: Sequence[int]) -> Sgmv | None:
        key = (a[0].data_ptr(), b[0].data_ptr())
        if key not in self._layers:
            try:
                self._layers[key] = Sgmv(DeviceLayer(tuple(a), tuple(b)), tuple(slices), self._programs)
            except ValueError:
                self._layers[key] = None
        return self._layers[key]
