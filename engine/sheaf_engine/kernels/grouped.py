"""The grouped CPU kernel: every segment, slice and adapter of one layer in two passes, without gathering weights.

Pass one shrinks (``v = scale * x A``), pass two expands (``y += v B``). Each pass is a list of work items that all
threads walk through in the same order, claiming the next one from an atomic counter, so that mixed ranks and lengths
balance by themselves. An adapter is found through tables of addresses: ``a[slice, slot]``, ``b[slice, slot]`` and the
true ``rank[slice, slot]``; loading or evicting one moves no other, and an adapter of rank 8 beside one of rank 128
costs what rank 8 costs. Segments of one to three tokens (decode) stream weights once through registers; longer ones
(prefill) are tiled four tokens at a time, B transposed per tile into the cache.

A call is described by ``Call``: one array of int64 that holds addresses and strides (in elements), so that passing it
to the threads costs nothing. The field order is shared with the compiled code.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numba
import numpy as np
from numba import types

from sheaf_engine.kernels.micro import (
    expand_four_tokens,
    expand_one_token,
    expand_tile_one_token,
    shrink_four_tokens,
    shrink_one_token,
    transpose_block,
)
from sheaf_engine.kernels.simd import at, fetch_add, get, inline, pointer, put, stack_floats

(
    COUNTER,
    X,
    X_ROW,
    Y,
    Y_ROW,
    V,
    V_ROW,
    V_SLICE,
    SEGMENTS,
    TOKENS,
    STARTS,
    SLOTS,
    DEPTH,
    SLICES,
    CAPACITY,
    A_TABLE,
    B_TABLE,
    RANKS,
    B_ROWS,
    WIDTHS,
    OFFSETS,
    SCALE_BITS,
    FIELDS,
) = range(23)

Storage = Literal["float32", "bfloat16", "float16"]
MAX_RANK = 256
LONG = 4
TOKEN_BLOCK = 32
RANK_BLOCK = 16
DEPTH_BLOCK = 512
DECODE_TILE = 256
TILE_FLOATS = 4096


@inline
def _shrink_block(
    c: Any, x: Any, v: Any, a: Any, tokens: Any, first: int, count: int, low: int, high: int, scale: Any
) -> None:
    depth, x_row, v_row = get(c, DEPTH), get(c, X_ROW), get(c, V_ROW)
    for t in range(first, first + count):
        for j in range(low, high):
            put(v, get(tokens, t) * v_row + j, np.float32(0))
    for k in range(0, depth, DEPTH_BLOCK):
        step = min(DEPTH_BLOCK, depth - k)
        for t in range(first, first + count, 4):
            _shrink_quad(x, v, at(a, k), tokens, t, first + count - t, low, high, k, step, depth, x_row, v_row, scale)


@inline
def _shrink_quad(
    x: Any,
    v: Any,
    a: Any,
    tokens: Any,
    t: int,
    left: int,
    low: int,
    high: int,
    k: int,
    step: int,
    depth: int,
    x_row: int,
    v_row: int,
    scale: Any,
) -> None:
    spare = stack_floats(8)
    t0 = get(tokens, t)
    t1 = get(tokens, t + 1) if left > 1 else t0
    t2 = get(tokens, t + 2) if left > 2 else t0
    t3 = get(tokens, t + 3) if left > 3 else t0
    x0, x1, x2, x3 = at(x, t0 * x_row + k), at(x, t1 * x_row + k), at(x, t2 * x_row + k), at(x, t3 * x_row + k)
    for j in range(low, high, 4):
        v0 = at(v, t0 * v_row + j)
        v1 = at(v, t1 * v_row + j) if left > 1 else spare
        v2 = at(v, t2 * v_row + j) if left > 2 else spare
        v3 = at(v, t3 * v_row + j) if left > 3 else spare
        shrink_four_tokens(x0, x1, x2, x3, at(a, j * depth), depth, step, v0, v1, v2, v3, scale)


@inline
def _expand_short(
    c: Any, y: Any, v: Any, b: Any, tokens: Any, first: int, count: int, row: int, rank: int, low: int, high: int
) -> None:
    y_row, v_row = get(c, Y_ROW), get(c, V_ROW)
    for o in range(low, high, 8):
        for t in range(first, first + count):
            token = get(tokens, t)
            expand_one_token(at(v, token * v_row), at(b, o * row), row, rank, at(y, token * y_row + o))


@inline
def _expand_long(
    c: Any, y: Any, v: Any, b: Any, tokens: Any, first: int, count: int, row: int, rank: int, low: int, high: int
) -> None:
    y_row, v_row = get(c, Y_ROW), get(c, V_ROW)
    columns = stack_floats(8192)
    width = (high - low) & ~31
    transpose_block(at(b, low * row), row, rank, width, columns)
    quads = first + (count & ~3)
    for t in range(first, quads, 4):
        t0, t1, t2, t3 = get(tokens, t), get(tokens, t + 1), get(tokens, t + 2), get(tokens, t + 3)
        v0, v1, v2, v3 = at(v, t0 * v_row), at(v, t1 * v_row), at(v, t2 * v_row), at(v, t3 * v_row)
        y0, y1, y2, y3 = (
            at(y, t0 * y_row + low),
            at(y, t1 * y_row + low),
            at(y, t2 * y_row + low),
            at(y, t3 * y_row + low),
        )
        for o in range(0, width, 32):
            expand_four_tokens(v0, v1, v2, v3, at(columns, o), width, rank, at(y0, o), at(y1, o), at(y2, o), at(y3, o))
    for t in range(quads, first + count):
        token = get(tokens, t)
        for o in range(0, width, 32):
            expand_tile_one_token(at(v, token * v_row), at(columns, o), width, rank, at(y, token * y_row + low + o))
    _expand_short(c, y, v, b, tokens, first, count, row, rank, low + width, high)


@inline
def _shrink_pass(address: int, tag: Any) -> None:
    c = pointer(address, np.int64(0))
    x, v = pointer(get(c, X), tag), pointer(get(c, V), np.float32(0))
    scale = get(pointer(address + 8 * SCALE_BITS, np.float32(0)), 0)
    tokens, starts = pointer(get(c, TOKENS), np.int64(0)), pointer(get(c, STARTS), np.int64(0))
    slots, ranks = pointer(get(c, SLOTS), np.int64(0)), pointer(get(c, RANKS), np.int64(0))
    table, counter = pointer(get(c, A_TABLE), np.int64(0)), at(c, COUNTER)
    depth, capacity = get(c, DEPTH), get(c, CAPACITY)
    item, mine = 0, fetch_add(counter)
    for s in range(get(c, SEGMENTS)):
        first, count, slot = get(starts, s), get(starts, s + 1) - get(starts, s), get(slots, s)
        block = TOKEN_BLOCK if count > 1 else 1
        for part in range(get(c, SLICES)):
            rank = (get(ranks, part * capacity + slot) + 7) & ~7
            a = pointer(get(table, part * capacity + slot), tag)
            into = at(v, part * get(c, V_SLICE))
            rows = RANK_BLOCK if count > 1 else 8
            for t in range(first, first + count, block):
                for j in range(0, rank, rows):
                    if item == mine:
                        mine = fetch_add(counter)
                        if count == 1:
                            token = get(tokens, t)
                            out = at(into, token * get(c, V_ROW) + j)
                            shrink_one_token(at(x, token * get(c, X_ROW)), at(a, j * depth), depth, out, scale)
                        else:
                            some = min(block, first + count - t)
                            _shrink_block(c, x, into, a, tokens, t, some, j, min(j + rows, rank), scale)
                    item += 1


@inline
def _expand_pass(address: int, tag: Any) -> None:
    c = pointer(address, np.int64(0))
    y, v = pointer(get(c, Y), tag), pointer(get(c, V), np.float32(0))
    tokens, starts = pointer(get(c, TOKENS), np.int64(0)), pointer(get(c, STARTS), np.int64(0))
    slots, ranks = pointer(get(c, SLOTS), np.int64(0)), pointer(get(c, RANKS), np.int64(0))
    table, counter = pointer(get(c, B_TABLE), np.int64(0)), at(c, COUNTER)
    widths, offsets = pointer(get(c, WIDTHS), np.int64(0)), pointer(get(c, OFFSETS), np.int64(0))
    rows, capacity = pointer(get(c, B_ROWS), np.int64(0)), get(c, CAPACITY)
    item, mine = 0, fetch_add(counter)
    for s in range(get(c, SEGMENTS)):
        first, count, slot = get(starts, s), get(starts, s + 1) - get(starts, s), get(slots, s)
        for part in range(get(c, SLICES)):
            rank = (get(ranks, part * capacity + slot) + 7) & ~7
            if rank == 0:
                continue
            b = pointer(get(table, part * capacity + slot), tag)
            source, target = at(v, part * get(c, V_SLICE)), at(y, get(offsets, part))
            row, width = get(rows, part), get(widths, part)
            tile = DECODE_TILE if count < LONG else min(128, max(32, (TILE_FLOATS // rank) & ~31))
            for o in range(0, width, tile):
                if item == mine:
                    mine = fetch_add(counter)
                    high = min(o + tile, width)
                    if count < LONG:
                        _expand_short(c, target, source, b, tokens, first, count, row, rank, o, high)
                    else:
                        _expand_long(c, target, source, b, tokens, first, count, row, rank, o, high)
                item += 1


ENTRY = types.void(types.int64)
TAGS: dict[Storage, Any] = {"float32": np.float32(0), "bfloat16": np.uint16(0), "float16": np.int16(0)}
SOURCES = ("simd.py", "micro.py", "grouped.py")


def _fingerprint() -> str:
    """Of everything that is compiled: numba's disk cache looks at one file only, and must never serve stale code."""
    folder = Path(__file__).parent
    return sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()


def _entries(tag: Any, fingerprint: str) -> tuple[Any, Any]:
    def shrink(address: int) -> None:
        _ = fingerprint
        _shrink_pass(address, tag)

    def expand(address: int) -> None:
        _ = fingerprint
        _expand_pass(address, tag)

    return shrink, expand


@cache
def compiled(storage: Storage) -> tuple[Any, Any]:
    """The two passes (shrink, expand) for a storage type.

    Compiled when first asked for, which takes seconds, and kept in numba's disk cache where there is a writable one.
    """
    shrink, expand = _entries(TAGS[storage], _fingerprint())
    return _compile(shrink), _compile(expand)


def _compile(entry: Any) -> Any:
    try:
        return numba.cfunc(ENTRY, error_model="numpy", cache=True)(entry)
    except RuntimeError:
        return numba.cfunc(ENTRY, error_model="numpy")(entry)
