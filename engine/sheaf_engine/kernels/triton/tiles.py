"""Which launch a shape gets: the first row of ``tiles.json`` that covers it, after V-LoRA's tiling by input shape.

The table is data, so that tuning on a device changes no code. ``measured`` says whether it was tuned: until then the
plug-in leaves stock kernels in place on CUDA unless it is told otherwise.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Tiles:
    """A launch: ``split`` parts the hidden size (mode split) or the outputs (mode fused) over that many programs."""

    mode: Literal["split", "fused"]
    block_r: int
    block_k: int
    block_n: int
    split: int
    warps: int
    stages: int


@cache
def table() -> dict[str, Any]:
    """The shipped table."""
    return dict(json.loads((Path(__file__).parent / "tiles.json").read_text()))


def measured() -> bool:
    """Whether the table was tuned on a device."""
    return bool(table()["measured"])


@cache
def tiles_for(tokens: int, max_rank: int) -> Tiles:
    """The launch for a batch of ``tokens`` over adapters padded to ``max_rank``.

    Raises:
        ValueError: no row covers the shape.
    """
    for row in table()["rows"]:
        if tokens <= row["max_tokens"] and max_rank <= row["max_rank"]:
            return Tiles(**{key: value for key, value in row.items() if not key.startswith("max_")})
    raise ValueError(f"no tiles for {tokens} tokens of rank {max_rank}: add a row to tiles.json")


def is_long(tokens: int) -> bool:
    """Whether a batch gets tiles of many tokens (prefill) rather than of few (decode)."""
    return tokens >= int(table()["block_m"]["long_from_tokens"])


def block_sizes() -> tuple[int, int]:
    """Tokens in a tile of a short batch and of a long one."""
    sizes = table()["block_m"]
    return int(sizes["short"]), int(sizes["long"])
