"""Custom operators, so that ``torch.compile`` carries the kernels through a graph as black boxes that change ``y``.

Eager code calls the wrapper's methods directly. While a graph is traced, the same call becomes an operator that finds
the wrapper by number when the graph runs, so nothing of a batch is baked into the graph.
"""

from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

Tensors = list[torch.Tensor]


class Kernels(Protocol):
    """What the operators need of a wrapper."""

    def linear(self, y: torch.Tensor, x: torch.Tensor, a: Tensors, b: Tensors, scale: float, slices: list[int]) -> None:
        """``y += scale * (x A) B``, slice by slice."""

    def shrink(self, y: torch.Tensor, x: torch.Tensor, a: Tensors, scale: float) -> None:
        """``y[c] = scale * x A_c``."""

    def expand(
        self, y: torch.Tensor, x: torch.Tensor, b: Tensors, slices: list[int], offset: int, *, accumulate: bool
    ) -> None:
        """``y[:, slice c] += x[c] B_c``."""


_wrappers: WeakValueDictionary[int, Any] = WeakValueDictionary()


def enroll(wrapper: Kernels) -> int:
    """Remember a wrapper (as long as someone else does) and give it a number."""
    number = max(_wrappers.keys(), default=-1) + 1
    _wrappers[number] = wrapper
    return number


def _linear(
    y: torch.Tensor,
    x: torch.Tensor,
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    scale: float,
    slices: list[int],
    wrapper: int,
) -> None:
    _wrappers[wrapper].linear(y, x, a, b, scale, slices)


def _shrink(y: torch.Tensor, x: torch.Tensor, a: list[torch.Tensor], scale: float, wrapper: int) -> None:
    _wrappers[wrapper].shrink(y, x, a, scale)


def _expand(
    y: torch.Tensor,
    x: torch.Tensor,
    b: list[torch.Tensor],
    slices: list[int],
    offset: int,
    accumulate: bool,  # noqa: FBT001
    wrapper: int,
) -> None:
    _wrappers[wrapper].expand(y, x, b, slices, offset, accumulate=accumulate)


def _nothing(*_arguments: Any) -> None:
    """What an operator that only changes ``y`` means for shapes."""


def _define(library: torch.library.Library, name: str, function: Any) -> None:
    schema = torch.library.infer_schema(function, mutates_args=["y"])
    library.define(name + schema)
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sheaf::{name}", _nothing, lib=library)


_library = torch.library.Library("sheaf", "DEF")
_define(_library, "lora_linear", _linear)
_define(_library, "lora_shrink", _shrink)
_define(_library, "lora_expand", _expand)
