"""vLLM's Punica wrapper on CPU, with Sheaf's kernels inside.

vLLM makes one wrapper an engine, tells it before each step which token uses which adapter (``update_metadata``), and
calls it from every layer with LoRA. It takes the place of ``PunicaWrapperCPU``, which gathers the whole adapter once
for every token, and which gives tokens *without* adapter the weights of the last slot when they share a batch with
tokens that have one (its index -1 means the last row).
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from time import monotonic  # noqa: TID251 - a shell: how long compiling took is only said
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from sheaf_engine.kernels import cpu as kernels
from sheaf_engine.kernels import grouped
from sheaf_engine.kernels.cpu import Call, CpuKernels, Step
from sheaf_engine.kernels.layer import STORAGE, Layer
from sheaf_engine.plugin import ops
from sheaf_engine.plugin.info import fall_back

logger = logging.getLogger("vllm.sheaf")


def sheaf_or_stock_wrapper(*arguments: Any, **named: Any) -> PunicaWrapperCPU:
    """What vLLM's platform names as its wrapper: Sheaf's, or stock if the kernels cannot be compiled here."""
    try:
        warm_up(named["lora_config"].lora_dtype)
    except Exception as error:
        logger.exception("Sheaf kernels: stock (they do not compile on this machine)")
        fall_back(f"they do not compile on this machine: {type(error).__name__}")
        return PunicaWrapperCPU(*arguments, **named)
    return SheafPunicaWrapperCPU(*arguments, **named)


def warm_up(dtype: torch.dtype) -> None:
    """Compile for a storage type now, rather than in the first request."""
    if dtype in STORAGE:
        started = monotonic()
        grouped.compiled(STORAGE[dtype])
        logger.info("Sheaf kernels: ready for %s in %.1f s", dtype, monotonic() - started)


class SheafPunicaWrapperCPU(PunicaWrapperCPU):  # type: ignore[misc]
    """See the module; methods that are not overridden are vLLM's."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._kernels = CpuKernels()
        self._calls: dict[tuple[object, ...], tuple[Call, list[torch.Tensor]]] = {}
        self._step = self._kernels.step([])
        self._number = ops.enroll(self)

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **_named: Any
    ) -> None:
        """Work out the segments of the next batch."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.is_prefill = mapping.is_prefill
        self._step = self._kernels.step(self.token_lora_indices.numpy())
        self.no_lora = not self._step.slots
        self.__dict__.pop("_sampler_step", None)

    @cached_property
    def _sampler_step(self) -> Step:
        return self._kernels.step(self.sampler_indices.numpy())

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_named: Any,
    ) -> None:
        """``y += scale * (x A) B`` for a linear layer, all slices in one call."""
        if torch.compiler.is_compiling():
            a, b = list(lora_a_stacked), list(lora_b_stacked)
            torch.ops.sheaf.lora_linear(y, x, a, b, scale, list(output_slices), self._number)
        else:
            self.linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)

    def add_shrink(
        self, y: Any, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...], scale: float, **_named: Any
    ) -> None:
        """Pass one alone, into ``y`` [slices, T, R] float32."""
        if torch.compiler.is_compiling():
            torch.ops.sheaf.lora_shrink(y, x, list(lora_a_stacked), scale, self._number)
        else:
            self.shrink(y, x, lora_a_stacked, scale)

    def add_expand(
        self,
        y: torch.Tensor,
        x: Any,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,  # noqa: FBT001, FBT002 - vLLM's signature
        **_named: Any,
    ) -> None:
        """Pass two alone, from ``x`` [slices, T, R] float32."""
        if torch.compiler.is_compiling():
            slices = list(output_slices)
            torch.ops.sheaf.lora_expand(y, x, list(lora_b_stacked), slices, offset_start, add_inputs, self._number)
        else:
            self.expand(y, x, lora_b_stacked, output_slices, offset_start, accumulate=add_inputs)

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,  # noqa: FBT001, FBT002 - vLLM's signature
        **_named: Any,
    ) -> None:
        """``y += x B`` for a vocabulary embedding whose A was looked up already."""
        width = min(y.shape[-1], lora_b_stacked.shape[-2])
        self.add_expand(y, x.unsqueeze(0), (lora_b_stacked,), (width,), 0, add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_named: Any,
    ) -> None:
        """``y += scale * (x A) B`` for the sampled rows only."""
        rows = y.view(-1, y.shape[-1])
        b = lora_b_stacked[..., : rows.shape[1], :]
        call = self._call((lora_a_stacked,), (b,), None)
        self._kernels.apply(call, rows, x.view(-1, x.shape[-1]), self._sampler_step, scale)

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
        if self._step.slots:
            self._kernels.apply(self._call(a, b, slices), y, x, self._step, scale)

    def shrink(self, y: Any, x: torch.Tensor, a: Sequence[torch.Tensor], scale: float) -> None:
        """See ``ops.Kernels``."""
        for part, matrix in zip(y, a, strict=True):
            kernels.shrink(part, x.view(-1, x.shape[-1]), matrix, self._step, scale)

    def expand(
        self,
        y: torch.Tensor,
        x: Any,
        b: Sequence[torch.Tensor],
        slices: Sequence[int],
        offset: int,
        *,
        accumulate: bool,
    ) -> None:
        """See ``ops.Kernels``."""
        rows = y.view(-1, y.shape[-1])
        for part, matrix, width in zip(x, b, slices, strict=True):
            kernels.expand(rows[:, offset : offset + width], part, matrix, self._step, accumulate=accumulate)
            offset += width

    def _call(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], slices: Sequence[int] | None) -> Call:
        """The prepared call for these adapters, made when they are first seen; it keeps them alive, as layers do."""
        key = (a[0].data_ptr(), b[0].data_ptr(), a[0].shape, b[0].shape)
        if key not in self._calls:
            self._calls[key] = (self._kernels.call(Layer.stacked(a, b), slices), [*a, *b])
        return self._calls[key][0]
