"""The specification of the multi-LoRA operator: everything else in this package must agree with it within rounding.

For every token ``t`` that uses the adapter in slot ``i = slots[t]``, and for every slice ``c`` of a packed projection::

    y[t, offset_c : offset_c + out_c] += scale * (x[t] @ A[c][i].T) @ B[c][i].T

and tokens with ``slots[t] == -1`` are left exactly as they were. This is SGMV, the segmented gather matrix-vector
product of Punica (Chen et al., MLSys 2024): tokens that share an adapter form a segment, and decode is the case where
every segment has length 1. Ranks may differ between adapters and between slices: S-LoRA's kernels (Sheng et al., MLSys
2024) and CaraServe's cost model (Li et al., 2024: padded kernels cost ``batch * max rank``, others ``sum of ranks``)
say why an implementation should do the work of the true rank and not of the largest. V-LoRA (Mi et al., EuroSys 2025)
chooses the tiling by shape; ``choice`` and the table of the GPU kernels follow it.

Shapes and layout, for T tokens, hidden size H, n slices with output sizes O_c, adapters of rank r_ci:

======== =================== ========================================================================================
name     shape               meaning
======== =================== ========================================================================================
``x``    [T, H]              the projection's input
``a``    n x slot -> [r, H]  row-major; ``a[c][i]`` is the shrinking matrix of slot i in slice c (LoRA's A)
``b``    n x slot -> [O, r]  row-major; ``b[c][i]`` is the expanding matrix (LoRA's B); alpha / r is already inside it
``y``    [T, at least sum O] the projection's output, changed in place
``slots`` [T]                the slot of each token's adapter, or -1
======== =================== ========================================================================================

There are no units: all are plain numbers. Implementations accumulate in float32 whatever the storage type is.
"""

from collections.abc import Mapping, Sequence

import torch

Adapters = Sequence[Mapping[int, torch.Tensor] | Sequence[torch.Tensor]]


def apply_reference(
    y: torch.Tensor,
    x: torch.Tensor,
    a: Adapters,
    b: Adapters,
    slots: Sequence[int],
    scale: float = 1.0,
    offset: int = 0,
) -> torch.Tensor:
    """What ``y`` must be afterwards, in float64; the arguments are left as they are.

    Args:
        y: [T, at least offset + sum of O], any dtype and strides.
        x: [T, H].
        a: for each slice, slot -> [r, H].
        b: for each slice, slot -> [O, r].
        slots: the slot of each token, or -1.
        scale: multiplies every update.
        offset: the first output column.

    Raises:
        IndexError: a slot that ``a`` or ``b`` does not hold.
    """
    result = y.double().clone()
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        column = offset
        for slice_a, slice_b in zip(a, b, strict=True):
            width = slice_b[slot].shape[0]
            shrunk = x[token].double() @ slice_a[slot].double().T
            result[token, column : column + width] += scale * (shrunk @ slice_b[slot].double().T)
            column += width
    return result


def error_bound(
    y: torch.Tensor,
    x: torch.Tensor,
    a: Adapters,
    b: Adapters,
    slots: Sequence[int],
    scale: float = 1.0,
    offset: int = 0,
) -> torch.Tensor:
    """The largest error, element by element, that rounding explains for an implementation that keeps the contract.

    The intermediate may be rounded once to the storage type (unit roundoff ``u``), sums of n float32 products err by at
    most ``n * 2**-24`` relative to the sum of their magnitudes, and the result is rounded once to the type of ``y``
    (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3). All three are relative to the same operator
    applied to magnitudes.
    """
    magnitude = apply_reference(
        y.double().abs(), x.double().abs(), _absolute(a), _absolute(b), slots, abs(scale), offset
    )
    depth = x.shape[1] + max((matrix.shape[1] for slice_b in b for matrix in _values(slice_b)), default=0)
    unit = torch.finfo(y.dtype).eps / 2
    storage = torch.finfo(x.dtype).eps / 2
    return magnitude * (2 * unit + 2 * storage + depth * 2.0**-24) + torch.finfo(y.dtype).smallest_normal


def _values(matrices: Mapping[int, torch.Tensor] | Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return list(matrices.values()) if isinstance(matrices, Mapping) else list(matrices)


def _absolute(adapters: Adapters) -> list[dict[int, torch.Tensor]]:
    return [
        {slot: matrix.double().abs() for slot, matrix in (m.items() if isinstance(m, Mapping) else enumerate(m))}
        for m in adapters
    ]
