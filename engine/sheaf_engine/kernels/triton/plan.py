"""The work list of a batch, built on the device: tokens sorted by adapter, cut into tiles of some tokens each.

One program does all of it, so one launch of a fixed shape serves every batch: nothing is read back to the host and a
captured CUDA graph may contain it. Tokens with a negative slot are in no tile. Tiles of one adapter are neighbours in
the list, so programs that run side by side share its weights in the cache.
"""

from dataclasses import dataclass

import torch
import triton

from sheaf_engine.kernels.triton.kernels import plan_kernel

BLOCK_T = 64


@dataclass(eq=False)
class Plan:
    """Buffers of fixed address for the work lists of one batch after another.

    ``order`` [max_tokens] are batch rows sorted by slot; tile i covers ``order[first[i] : first[i] + count[i]]`` and
    uses adapter ``slot[i]``; ``tiles[0]`` is how many there are. All int32, on the device.
    """

    capacity: int
    block_m: int
    order: torch.Tensor
    slot: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    tiles: torch.Tensor

    @classmethod
    def make(cls, max_tokens: int, capacity: int, block_m: int, device: torch.device | str) -> "Plan":
        """Room for batches of ``max_tokens`` over ``capacity`` slots: at most one part-filled tile a slot."""
        most = max_tokens // block_m + min(max_tokens, capacity) + 1

        def room(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        return cls(capacity, block_m, room(max_tokens), room(most), room(most), room(most), room(1))

    def build(self, slots: torch.Tensor) -> None:
        """Fill the lists for a batch: ``slots`` [T] integers on the device, negative for no adapter.

        Raises:
            ValueError: more tokens than there is room for.
        """
        if len(slots) > len(self.order):
            raise ValueError(f"{len(slots)} tokens: this plan has room for {len(self.order)}")
        plan_kernel[(1,)](
            slots,
            self.order,
            self.slot,
            self.first,
            self.count,
            self.tiles,
            len(slots),
            CAPACITY=triton.next_power_of_2(max(2, self.capacity)),
            BLOCK_T=BLOCK_T,
            BLOCK_M=self.block_m,
        )
