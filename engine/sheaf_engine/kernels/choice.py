"""Which form of the operator a segment gets: a pure function of its shape, the storage type and the machine.

Two forms exist on CPU. ``GROUPED`` is the compiled kernel that takes all segments of a layer in one call; ``GEMM`` is
one pair of matrix products per segment and slice through torch. The rule and where it comes from:

- Decode is bound by reading weights, so the form that reads each adapter once and starts few operations wins: GROUPED.
- With float32 storage torch's matrix products (MKL) reach more of the machine than GROUPED once a segment is long: on
  one Cascade Lake core they met near 256 tokens for ranks of 8 and 16 and near 128 for ranks of 64 and 128.
- With bfloat16 or float16 storage torch first converts, so GROUPED stays ahead for every length measured, unless the
  processor multiplies bfloat16 in matrix units (AMX or AVX512-BF16): there long segments go to GEMM. That last
  crossover is an estimate: no such machine was at hand.
- What GROUPED cannot take (mixed types, odd sizes, ranks above its limit) always goes to GEMM, which takes everything.
"""

from enum import Enum


class Form(Enum):
    """How a segment is computed."""

    GROUPED = "grouped"
    GEMM = "gemm"


LOW_RANK = 32
FLOAT32_CROSSOVER, FLOAT32_CROSSOVER_ABOVE_LOW_RANK = 256, 128
NATIVE_BFLOAT16_CROSSOVER = 64
NEVER = 1 << 62


def gemm_from(*, grouped: bool, rank: int, float32: bool, bfloat16: bool, native_bfloat16: bool) -> int:
    """The segment length from which GEMM is the better form.

    Args:
        grouped: the compiled kernel can take this layer.
        rank: the rank that its slots are padded to.
        float32: the adapters are stored as float32.
        bfloat16: they are stored as bfloat16.
        native_bfloat16: the processor multiplies bfloat16 matrices itself.
    """
    if not grouped:
        return 0
    if float32:
        return FLOAT32_CROSSOVER if rank <= LOW_RANK else FLOAT32_CROSSOVER_ABOVE_LOW_RANK
    return NATIVE_BFLOAT16_CROSSOVER if bfloat16 and native_bfloat16 else NEVER


def choose(length: int, crossover: int) -> Form:
    """The form for a segment of ``length`` tokens, given ``gemm_from``."""
    return Form.GEMM if length >= crossover else Form.GROUPED


def workers(multiplications: int, threads: int, at_least: int = 65_536) -> int:
    """How many threads a call is worth: each gets ``at_least`` multiplications, and there is always one."""
    return max(1, min(threads, multiplications // at_least))
