"""The grouped CPU kernel: every segment, slice and adapter of one layer in two passes, without gathering weights.

Pass one shrinks (``v = scale * x A``), pass two expands (``y += v B``). Each pass is a list of work items that all
threads walk through in the same order, claiming the next one from an atomic counter, so that mixed ranks and lengths
balance by themselves. An adapter is found through tables of addresses: ``a[slice, slot]``, ``b[slice, slot]`` and the
true ``rank[slice, slot]``; loading or evicting one moves no other, and an adapter of rank 8 beside one of rank 128
costs what rank 8 costs. Segments of one to three tokens (decode) stream each weight once through registers. Longer ones
(prefill) are tiled four tokens at a time, over blocks of A and transposed blocks of B that are widened into the cache.

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
    widen_row,
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
TOKEN_BLOCK, RANK_BLOCK, DEPTH_BLOCK = 64, 16, 512
EXPAND_TOKENS, EXPAND_TILE, DECODE_TILE, TILE_FLOATS = 128, 1024, 256, 8192


@inline
def _shrink_short(
    c: Any, x: Any, v: Any, a: Any, tokens: Any, first: int, count: int, low: int, high: int, scale: Any
) -> None:
    depth, x_row, v_row = get(c, DEPTH), get(c, X_ROW), get(c, V_ROW)
    for t in range(first, first + count):
        token = get(tokens, t)
        for j in range(low, high, 8):
            shrink_one_token(at(x, token * x_row), at(a, j * depth), depth, at(v, token * v_row + j), scale)


@inline
def _shrink_long(
    c: Any, x: Any, v: Any, a: Any, tokens: Any, first: int, count: int, low: int, high: int, scale: Any
) -> None:
    depth, x_row, v_row = get(c, DEPTH), get(c, X_ROW), get(c, V_ROW)
    weights = stack_floats(8192)
    for t in range(first, first + count):
        for j in range(low, high):
            put(v, get(tokens, t) * v_row + j, np.float32(0))
    for k in range(0, depth, DEPTH_BLOCK):
        step = min(DEPTH_BLOCK, depth - k)
        for j in range(low, high):
            widen_row(at(a, j * depth + k), step, at(weights, (j - low) * DEPTH_BLOCK))
        for t in range(first, first + count, 4):
            _shrink_quad(at(x, k), v, weights, tokens, t, first + count - t, low, high, step, x_row, v_row, scale)


@inline
def _shrink_quad(
    x: Any,
    v: Any,
    weights: Any,
    tokens: Any,
    t: int,
    left: int,
    low: int,
    high: int,
    step: int,
    x_row: int,
    v_row: int,
    scale: Any,
) -> None:
    rows, spare = stack_floats(2048), stack_floats(8)
    t0 = get(tokens, t)
    t1 = get(tokens, t + 1) if left > 1 else t0
    t2 = get(tokens, t + 2) if left > 2 else t0
    t3 = get(tokens, t + 3) if left > 3 else t0
    widen_row(at(x, t0 * x_row), step, rows)
    widen_row(at(x, t1 * x_row), step, at(rows, DEPTH_BLOCK))
    widen_row(at(x, t2 * x_row), step, at(rows, 2 * DEPTH_BLOCK))
    widen_row(at(x, t3 * x_row), step, at(rows, 3 * DEPTH_BLOCK))
    for j in range(low, high, 4):
        v0 = at(v, t0 * v_row + j)
        v1 = at(v, t1 * v_row + j) if left > 1 else spare
        v2 = at(v, t2 * v_row + j) if left > 2 else spare
        v3 = at(v, t3 * v_row + j) if left > 3 else spare
        shrink_four_tokens(rows, at(weights, (j - low) * DEPTH_BLOCK), DEPTH_BLOCK, step, v0, v1, v2, v3, scale)


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
    capacity = get(c, CAPACITY)
    item, mine = 0, fetch_add(counter)
    for s in range(get(c, SEGMENTS)):
        first, count, slot = get(starts, s), get(starts, s + 1) - get(starts, s), get(slots, s)
        long = count >= LONG
        block, rows = (TOKEN_BLOCK, RANK_BLOCK) if long else (LONG, 8)
        for part in range(get(c, SLICES)):
            rank = (get(ranks, part * capacity + slot) + 7) & ~7
            a = pointer(get(table, part * capacity + slot), tag)
            into = at(v, part * get(c, V_SLICE))
            for t in range(first, first + count, block):
                for j in range(0, rank, rows):
                    if item == mine:
                        mine = fetch_add(counter)
                        some, high = min(block, first + count - t), min(j + rows, rank)
                        if long:
                            _shrink_long(c, x, into, a, tokens, t, some, j, high, scale)
                        else:
                            _shrink_short(c, x, into, a, tokens, t, some, j, high, scale)
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
            tile = min(EXPAND_TILE, max(32, (TILE_FLOATS // rank) & ~31)) if count >= LONG else DECODE_TILE
            for t in range(first, first + count, EXPAND_TOKENS):
                some = min(EXPAND_TOKENS, first + count - t)
                for o in range(0, width, tile):
                    if item == mine:
                        mine = fetch_add(counter)
                        high = min(o + tile, width)
                        if count >= LONG:
                            _expand_long(c, target, source, b, tokens, t, some, row, rank, o, high)
                        else:
                            _expand_short(c, target, source, b, tokens, t, some, row, rank, o, high)
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
