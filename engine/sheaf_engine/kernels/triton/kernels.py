"""Device code: a batch's work list, and shrink, expand, and both fused, over its tiles.

The last three are persistent: a fixed number of programs walks through the work items (tile, slice and what the kernel
splits further) with a stride, and reads on the device how many there are. An item beyond the true rank of its adapter,
or beyond the width of its slice, ends at once. Adapters are found through tables of addresses [slices, slots], so they
may lie anywhere. Sums are float32; the intermediate is rounded to the storage type for the second product, as matrix
units want it.

- ``plan_kernel``, one program, sorts tokens by adapter and cuts them into tiles (see ``plan``).
- ``shrink_kernel`` writes ``v[split, slice, token, rank]``: each split of the hidden size a partial sum of its own, so
  no atomics, no zeroing, and the same bits every time.
- ``expand_kernel`` adds the partial sums and then ``y += v B``.
- ``fused_kernel`` keeps ``v`` in registers: one launch, at the price of computing it once for each part of the outputs.

``WIDEN`` is for the interpreter, which has no matrix product of bfloat16: operands are widened after rounding.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803, D103, PIE808 - Triton gives arguments types and a language of their own
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def plan_kernel(
    slots,
    order,
    tile_slot,
    tile_first,
    tile_count,
    tiles,
    tokens,
    CAPACITY: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    ids = tl.arange(0, CAPACITY)
    counts = tl.zeros((CAPACITY,), tl.int32)
    for begin in range(0, tokens, BLOCK_T):
        row = begin + tl.arange(0, BLOCK_T)
        slot = tl.load(slots + row, mask=row < tokens, other=-1).to(tl.int32)
        counts += tl.sum((slot[:, None] == ids[None, :]).to(tl.int32), 0)
    starts = tl.cumsum(counts, 0) - counts
    seen = starts
    for begin in range(0, tokens, BLOCK_T):
        row = begin + tl.arange(0, BLOCK_T)
        slot = tl.load(slots + row, mask=row < tokens, other=-1).to(tl.int32)
        mine = (slot[:, None] == ids[None, :]).to(tl.int32)
        earlier = tl.cumsum(mine, 0) - mine
        place = tl.sum(mine * (earlier + seen[None, :]), 1)
        tl.store(order + place, row, mask=(row < tokens) & (slot >= 0))
        seen += tl.sum(mine, 0)
    needed = (counts + BLOCK_M - 1) // BLOCK_M
    first_tile = tl.cumsum(needed, 0) - needed
    tl.store(tiles, tl.sum(needed, 0))
    for k in range(0, tl.max(needed, 0)):
        used = k < needed
        tl.store(tile_slot + first_tile + k, ids, mask=used)
        tl.store(tile_first + first_tile + k, starts + k * BLOCK_M, mask=used)
        tl.store(tile_count + first_tile + k, tl.minimum(counts - k * BLOCK_M, BLOCK_M), mask=used)


@triton.jit
def _dot(left, right, total, WIDEN):
    if WIDEN:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _product(x, a, row_of, kept, rank, begin, end, x_row, depth, low, BLOCK_M, BLOCK_R, BLOCK_K, WIDEN):
    r = low + tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for k in range(begin, end, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        inside = column < end
        left = tl.load(x + row_of[:, None] * x_row + column[None, :], mask=kept[:, None] & inside[None, :], other=0.0)
        right = tl.load(a + r[None, :] * depth + column[:, None], mask=(r < rank)[None, :] & inside[:, None], other=0.0)
        total = _dot(left, right, total, WIDEN)
    return total


@triton.jit
def _expand_into(y, b, v, rank, r, column, width, b_row, total, WIDEN):
    right = tl.load(
        b + column[None, :] * b_row + r[:, None], mask=(r < rank)[:, None] & (column < width)[None, :], other=0.0
    )
    return _dot(v.to(y.dtype.element_ty), right, total, WIDEN)


@triton.jit
def _add_to(y, row_of, kept, column, width, y_row, total):
    target = y + row_of[:, None] * y_row + column[None, :]
    mask = kept[:, None] & (column < width)[None, :]
    tl.store(target, (tl.load(target, mask=mask, other=0.0).to(tl.float32) + total).to(y.dtype.element_ty), mask=mask)


@triton.jit
def shrink_kernel(
    x,
    v,
    a_table,
    ranks,
    order,
    tile_slot,
    tile_first,
    tile_count,
    tiles,
    scale,
    x_row,
    depth,
    v_split,
    v_slice,
    v_row,
    capacity,
    SLICES: tl.constexpr,
    RANK_BLOCKS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,
):
    parts = SLICES * RANK_BLOCKS * SPLIT_K
    chunk = tl.cdiv(tl.cdiv(depth, SPLIT_K), BLOCK_K) * BLOCK_K
    for item in range(tl.program_id(0), tl.load(tiles) * parts, tl.num_programs(0)):
        tile, part = item // parts, item % parts
        split, low, piece = part % SPLIT_K, (part // SPLIT_K) % RANK_BLOCKS * BLOCK_R, part // (SPLIT_K * RANK_BLOCKS)
        slot = tl.load(tile_slot + tile)
        rank = tl.load(ranks + piece * capacity + slot)
        if low < rank:
            kept = tl.arange(0, BLOCK_M) < tl.load(tile_count + tile)
            row_of = tl.load(order + tl.load(tile_first + tile) + tl.arange(0, BLOCK_M), mask=kept, other=0).to(
                tl.int64
            )
            a = tl.load(a_table + piece * capacity + slot).to(tl.pointer_type(x.dtype.element_ty))
            begin = split * chunk
            end = tl.minimum(begin + chunk, depth)
            total = _product(x, a, row_of, kept, rank, begin, end, x_row, depth, low, BLOCK_M, BLOCK_R, BLOCK_K, WIDEN)
            r = low + tl.arange(0, BLOCK_R)
            target = v + split.to(tl.int64) * v_split + piece * v_slice + row_of[:, None] * v_row + r[None, :]
            tl.store(target, total * scale, mask=kept[:, None] & (r < rank)[None, :])


@triton.jit
def expand_kernel(
    y,
    v,
    b_table,
    ranks,
    widths,
    offsets,
    order,
    tile_slot,
    tile_first,
    tile_count,
    tiles,
    y_row,
    b_row,
    v_split,
    v_slice,
    v_row,
    capacity,
    SLICES: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEN: tl.constexpr,
):
    parts = SLICES * COLUMN_BLOCKS
    for item in range(tl.program_id(0), tl.load(tiles) * parts, tl.num_programs(0)):
        tile, part = item // parts, item % parts
        piece, begin = part // COLUMN_BLOCKS, part % COLUMN_BLOCKS * BLOCK_N
        slot, width = tl.load(tile_slot + tile), tl.load(widths + piece)
        rank = tl.load(ranks + piece * capacity + slot)
        if (begin < width) & (rank > 0):
            kept = tl.arange(0, BLOCK_M) < tl.load(tile_count + tile)
            row_of = tl.load(order + tl.load(tile_first + tile) + tl.arange(0, BLOCK_M), mask=kept, other=0).to(
                tl.int64
            )
            b = tl.load(b_table + piece * capacity + slot).to(tl.pointer_type(y.dtype.element_ty))
            column = begin + tl.arange(0, BLOCK_N)
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for low in range(0, rank, BLOCK_R):
                r = low + tl.arange(0, BLOCK_R)
                source = v + piece * v_slice + row_of[:, None] * v_row + r[None, :]
                mask = kept[:, None] & (r < rank)[None, :]
                shrunk = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
                for split in tl.static_range(SPLIT_K):
                    shrunk += tl.load(source + split * v_split, mask=mask, other=0.0)
                total = _expand_into(y, b, shrunk, rank, r, column, width, b_row, total, WIDEN)
            _add_to(y + tl.load(offsets + piece), row_of, kept, column, width, y_row, total)


@triton.jit
def fused_kernel(
    x,
    y,
    a_table,
    b_table,
    ranks,
    widths,
    offsets,
    order,
    tile_slot,
    tile_first,
    tile_count,
    tiles,
    scale,
    x_row,
    y_row,
    b_row,
    depth,
    capacity,
    SLICES: tl.constexpr,
    SPLIT_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEN: tl.constexpr,
):
    parts = SLICES * SPLIT_N
    for item in range(tl.program_id(0), tl.load(tiles) * parts, tl.num_programs(0)):
        tile, part = item // parts, item % parts
        piece, split = part // SPLIT_N, part % SPLIT_N
        slot, width = tl.load(tile_slot + tile), tl.load(widths + piece)
        rank = tl.load(ranks + piece * capacity + slot)
        if rank > 0:
            kept = tl.arange(0, BLOCK_M) < tl.load(tile_count + tile)
            row_of = tl.load(order + tl.load(tile_first + tile) + tl.arange(0, BLOCK_M), mask=kept, other=0).to(
                tl.int64
            )
            a = tl.load(a_table + piece * capacity + slot).to(tl.pointer_type(x.dtype.element_ty))
            b = tl.load(b_table + piece * capacity + slot).to(tl.pointer_type(x.dtype.element_ty))
            shrunk = (
                _product(x, a, row_of, kept, rank, 0, depth, x_row, depth, 0, BLOCK_M, BLOCK_R, BLOCK_K, WIDEN) * scale
            )
            out = y + tl.load(offsets + piece)
            r = tl.arange(0, BLOCK_R)
            for begin in range(split * BLOCK_N, width, SPLIT_N * BLOCK_N):
                column = begin + tl.arange(0, BLOCK_N)
                total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                total = _expand_into(y, b, shrunk, rank, r, column, width, b_row, total, WIDEN)
                _add_to(out, row_of, kept, column, width, y_row, total)
