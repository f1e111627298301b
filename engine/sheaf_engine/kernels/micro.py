"""The inner loops of the grouped CPU kernel: small dense products that stay in registers and the first-level cache.

All matrices are row-major in one of the storage types of ``simd``; ``v`` is the float32 intermediate, one row a token.
Widths: ``depth`` (the hidden size) is a multiple of 16, ranks are multiples of 8 (a true rank is rounded up into the
zero rows of its slot), outputs are multiples of 8.
"""

from typing import Any

from sheaf_engine.kernels.simd import (
    WIDTH,
    add,
    add_halves,
    at,
    fma,
    fold,
    get,
    inline,
    load,
    load8,
    load16,
    put,
    splat8,
    splat16,
    store8,
    store16,
    store_transposed,
    times,
    total,
    totals8,
    zero,
    zero8,
    zero16,
)


@inline
def shrink_one_token(x: Any, a: Any, depth: int, v: Any, scale: float) -> None:
    """``v[0:8] = scale * x @ a[0:8].T`` for one token and eight rows of A: eight streams of weights, each read once."""
    s0, s1, s2, s3 = zero16(), zero16(), zero16(), zero16()
    s4, s5, s6, s7 = zero16(), zero16(), zero16(), zero16()
    for k in range(0, depth, 16):
        xk = load16(x, k)
        s0 = fma(xk, load16(a, k), s0)
        s1 = fma(xk, load16(a, depth + k), s1)
        s2 = fma(xk, load16(a, 2 * depth + k), s2)
        s3 = fma(xk, load16(a, 3 * depth + k), s3)
        s4 = fma(xk, load16(a, 4 * depth + k), s4)
        s5 = fma(xk, load16(a, 5 * depth + k), s5)
        s6 = fma(xk, load16(a, 6 * depth + k), s6)
        s7 = fma(xk, load16(a, 7 * depth + k), s7)
    put(v, 0, total(s0) * scale)
    put(v, 1, total(s1) * scale)
    put(v, 2, total(s2) * scale)
    put(v, 3, total(s3) * scale)
    put(v, 4, total(s4) * scale)
    put(v, 5, total(s5) * scale)
    put(v, 6, total(s6) * scale)
    put(v, 7, total(s7) * scale)


@inline
def widen_row(source: Any, count: int, into: Any) -> None:
    """``into[0:count] = source[0:count]`` as float32, for products that use it often."""
    for k in range(0, count, 16):
        store16(into, k, load16(source, k))


@inline
def shrink_four_tokens(x: Any, a: Any, row: int, depth: int, v0: Any, v1: Any, v2: Any, v3: Any, scale: float) -> None:
    """``v[t][0:4] += scale * x[t] @ a[0:4].T``: four tokens, four rows of A, all float32 and ``row`` apart."""
    a0, a1, a2, a3 = zero(), zero(), zero(), zero()
    b0, b1, b2, b3 = zero(), zero(), zero(), zero()
    c0, c1, c2, c3 = zero(), zero(), zero(), zero()
    d0, d1, d2, d3 = zero(), zero(), zero(), zero()
    for k in range(0, depth, WIDTH):
        xa, xb, xc, xd = load(x, k), load(x, row + k), load(x, 2 * row + k), load(x, 3 * row + k)
        w = load(a, k)
        a0, b0, c0, d0 = fma(xa, w, a0), fma(xb, w, b0), fma(xc, w, c0), fma(xd, w, d0)
        w = load(a, row + k)
        a1, b1, c1, d1 = fma(xa, w, a1), fma(xb, w, b1), fma(xc, w, c1), fma(xd, w, d1)
        w = load(a, 2 * row + k)
        a2, b2, c2, d2 = fma(xa, w, a2), fma(xb, w, b2), fma(xc, w, c2), fma(xd, w, d2)
        w = load(a, 3 * row + k)
        a3, b3, c3, d3 = fma(xa, w, a3), fma(xb, w, b3), fma(xc, w, c3), fma(xd, w, d3)
    s = splat8(scale)
    add_halves(v0, v1, times(s, totals(a0, a1, a2, a3, b0, b1, b2, b3)))
    add_halves(v2, v3, times(s, totals(c0, c1, c2, c3, d0, d1, d2, d3)))


@inline
def totals(r0: Any, r1: Any, r2: Any, r3: Any, r4: Any, r5: Any, r6: Any, r7: Any) -> Any:
    """The sums of eight wide vectors, as one of eight lanes."""
    return totals8(fold(r0), fold(r1), fold(r2), fold(r3), fold(r4), fold(r5), fold(r6), fold(r7))


@inline
def expand_one_token(v: Any, b: Any, row: int, rank: int, y: Any) -> None:
    """``y[0:8] += v @ b[0:8].T`` for one token and eight rows of B (``row`` apart)."""
    s0, s1, s2, s3 = zero8(), zero8(), zero8(), zero8()
    s4, s5, s6, s7 = zero8(), zero8(), zero8(), zero8()
    for j in range(0, rank, 8):
        vj = load8(v, j)
        s0 = fma(vj, load8(b, j), s0)
        s1 = fma(vj, load8(b, row + j), s1)
        s2 = fma(vj, load8(b, 2 * row + j), s2)
        s3 = fma(vj, load8(b, 3 * row + j), s3)
        s4 = fma(vj, load8(b, 4 * row + j), s4)
        s5 = fma(vj, load8(b, 5 * row + j), s5)
        s6 = fma(vj, load8(b, 6 * row + j), s6)
        s7 = fma(vj, load8(b, 7 * row + j), s7)
    store8(y, 0, add(load8(y, 0), totals8(s0, s1, s2, s3, s4, s5, s6, s7)))


@inline
def transpose_block(b: Any, row: int, rank: int, outputs: int, into: Any) -> None:
    """``into[j * outputs + o] = b[o * row + j]``: B's rows as columns, widened: lanes are outputs."""
    for o in range(0, outputs, 8):
        for j in range(0, rank, 8):
            p = at(b, o * row + j)
            r0, r1, r2, r3 = load8(p, 0), load8(p, row), load8(p, 2 * row), load8(p, 3 * row)
            r4, r5, r6, r7 = load8(p, 4 * row), load8(p, 5 * row), load8(p, 6 * row), load8(p, 7 * row)
            store_transposed(at(into, j * outputs + o), outputs, r0, r1, r2, r3, r4, r5, r6, r7)


@inline
def expand_four_tokens(
    v0: Any, v1: Any, v2: Any, v3: Any, columns: Any, width: int, rank: int, y0: Any, y1: Any, y2: Any, y3: Any
) -> None:
    """``y[t][0:32] += v[t] @ columns[:, 0:32]`` for four tokens; ``columns`` is a transposed block, ``width`` wide."""
    a0, a1, b0, b1 = zero16(), zero16(), zero16(), zero16()
    c0, c1, d0, d1 = zero16(), zero16(), zero16(), zero16()
    for j in range(rank):
        w0, w1 = load16(columns, j * width), load16(columns, j * width + 16)
        s = splat16(get(v0, j))
        a0, a1 = fma(s, w0, a0), fma(s, w1, a1)
        s = splat16(get(v1, j))
        b0, b1 = fma(s, w0, b0), fma(s, w1, b1)
        s = splat16(get(v2, j))
        c0, c1 = fma(s, w0, c0), fma(s, w1, c1)
        s = splat16(get(v3, j))
        d0, d1 = fma(s, w0, d0), fma(s, w1, d1)
    _add_pair(y0, a0, a1)
    _add_pair(y1, b0, b1)
    _add_pair(y2, c0, c1)
    _add_pair(y3, d0, d1)


@inline
def expand_tile_one_token(v: Any, columns: Any, width: int, rank: int, y: Any) -> None:
    """``y[0:32] += v @ columns[:, 0:32]`` for one token."""
    a0, a1 = zero16(), zero16()
    for j in range(rank):
        s = splat16(get(v, j))
        a0, a1 = fma(s, load16(columns, j * width), a0), fma(s, load16(columns, j * width + 16), a1)
    _add_pair(y, a0, a1)


@inline
def _add_pair(y: Any, low: Any, high: Any) -> None:
    store16(y, 0, add(load16(y, 0), low))
    store16(y, 16, add(load16(y, 16), high))
