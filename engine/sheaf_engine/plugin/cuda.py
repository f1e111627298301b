"""vLLM's Punica wrapper on CUDA, with Sheaf's kernels for linear layers; everything else is vLLM's.

Only the path that every linear layer takes is replaced. Layers whose adapters are sharded over devices, mixtures of
experts, logits and embeddings stay with stock kernels, and so does any call that ``TritonKernels.linear`` declines.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU

from sheaf_engine.kernels.triton.sgmv import TritonKernels
from sheaf_engine.plugin import ops
from sheaf_engine.plugin.info import fall_back

logger = logging.getLogger("vllm.sheaf")


def sheaf_or_stock_wrapper(*arguments: Any, **named: Any) -> PunicaWrapperGPU:
    """What vLLM's platform names as its wrapper: Sheaf's, or stock if the kernels cannot be set up here."""
    try:
        return SheafPunicaWrapperGPU(*arguments, **named)
    except Exception as error:
        logger.exception("Sheaf kernels: stock (they cannot be set up on this device)")
        fall_back(f"they cannot be set up on this device: {type(error).__name__}")
        return PunicaWrapperGPU(*arguments, **named)


class SheafPunicaWrapperGPU(PunicaWrapperGPU):  # type: ignore[misc]
    """See the module; methods that are not overridden are vLLM's."""

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **named: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **named)
        self._kernels = TritonKernels(max_num_batched_tokens, self.max_loras, device)
        self._number = ops.enroll(self)

    def update_metadata(self, *arguments: Any, **named: Any) -> None:
        """Prepare the next batch, outside of any captured graph and into buffers that never move."""
        super().update_metadata(*arguments, **named)
        self._kernels.step(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **named: Any,
    ) -> None:
        """``y += scale * (x A) B`` for a linear layer, all slices in one call."""
        if not named.get("add_inputs", True):
            super().add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **named)
        elif torch.compiler.is_compiling():
            a, b = list(lora_a_stacked), list(lora_b_stacked)
            torch.ops.sheaf.lora_linear(y, x, a, b, scale, list(output_slices), self._number)
        else:
            self.linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)

    def linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a: Sequence[torch.Tensor],
        b: Sequence[torch.Tensor],
        scale: float,
        slices: Sequence[int],
    ) -> None:
        """See ``ops.Kernels``."""
        if not self._kernels.linear(y, x, a, b, scale, slices):
            super().add_lora_linear(y, x, tuple(a), tuple(b), scale, tuple(slices))
