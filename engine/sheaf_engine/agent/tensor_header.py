"""The header of a safetensors file, read without touching a tensor.

Format: 8 bytes little-endian length N, N bytes of JSON {name: {dtype, shape, data_offsets}, "__metadata__": {str:
str}}, data. Every claim is checked against the file's real size: offsets must tile the data exactly, in any order,
with no gap and no overlap.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.strict_json import is_int, parse_object

LARGEST_HEADER = 16 * 2**20
MOST_TENSORS = 200_000
_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as the header declares it: byte offsets are relative to the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def _bad(message: str) -> NoReturn:
    raise AdapterError(Reason.BAD_WEIGHTS, f"the weights are not a sound safetensors file: {message}")


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of the file by name; AdapterError(BadWeights) where the header is not sound."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8:
            _bad(f"it has {size} bytes, too few for a header")
        if length > LARGEST_HEADER or length > size - 8:
            _bad(f"it claims a header of {length} bytes in a file of {size}{_guess(start)}")
        content = file.read(length)
    return parse_header(content, size - 8 - length)


def _guess(start: bytes) -> str:
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "; it begins like a zip archive (or a pickled PyTorch file)"
    if start.startswith(b"\x80") and start[1] < 6:
        return "; it begins like a pickle"
    return "; it begins like a gzip archive" if start.startswith(b"\x1f\x8b") else ""


def parse_header(content: bytes, data_size: int) -> dict[str, Tensor]:
    """The tensors that a header declares over `data_size` bytes of data."""
    try:
        header = parse_object(content)
    except ValueError as error:
        _bad(f"its header is not sound: {error}")
    _check_metadata(header.pop("__metadata__", {}))
    if not header or len(header) > MOST_TENSORS:
        _bad(f"it holds {len(header)} tensors")
    tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    _check_tiling(tensors, data_size)
    return tensors


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _bad("__metadata__ is not an object of texts")


def _tensor(name: str, entry: object) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _bad(f"tensor {name[:120]!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        _bad(f"tensor {name[:120]!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > 8:
        _bad(f"tensor {name[:120]!r} has a shape that is not a short list of whole numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        _bad(f"tensor {name[:120]!r} has data_offsets that are not two whole numbers")
    start, end = offsets
    if end - start != math.prod(shape) * _BYTES[dtype]:
        _bad(f"tensor {name[:120]!r} has {end - start} bytes, which its shape and dtype do not give")
    return Tensor(dtype, tuple(shape), start, end)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(is_int(item) and 0 <= item < 2**48 for item in value)


def _check_tiling(tensors: dict[str, Tensor], data_size: int) -> None:
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            _bad(f"tensor {name[:120]!r} begins at byte {tensor.start} where {position} was due (overlap or gap)")
        position = tensor.end
    if position != data_size:
        _bad(f"its tensors take {position} bytes, but it holds {data_size} bytes of data (truncated or padded)")
