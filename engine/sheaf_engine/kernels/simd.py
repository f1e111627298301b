"""Vectors of 8 or 16 float32 lanes for just-in-time compiled code, and memory of three storage types.

numba has no vector type and its loops over ranks of 8 or 16 do not vectorise well, so this module adds one: ``Lanes``
is an LLVM vector, which LLVM maps to whatever the processor has (AVX2, AVX-512, NEON). Loads widen and stores narrow,
so a kernel computes in float32 whatever the storage type is: float32, bfloat16 (seen as uint16) and float16 (seen as
int16). Pointers are plain: no bounds check, no wrap-around of negative indices.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core.extending import intrinsic as numba_intrinsic
from numba.core.extending import models, register_model

Function = TypeVar("Function", bound=Callable[..., Any])
inline = cast(
    "Callable[[Function], Function]",
    numba.njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy", boundscheck=False, nogil=True),
)
intrinsic = cast("Callable[[Function], Any]", numba_intrinsic)

FLOAT = ir.FloatType()
WORD = ir.IntType(32)
HALFWORD = ir.IntType(16)


class Lanes(types.Type):  # type: ignore[misc]
    """The type of a vector of float32 lanes."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Lanes{width}")


LANES8, LANES16 = Lanes(8), Lanes(16)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """How numba keeps the vector: as LLVM does."""

    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(FLOAT, lanes.width))


def _words(width: int) -> ir.VectorType:
    return ir.VectorType(WORD, width)


def _splat(width: int, value: int) -> ir.Constant:
    return ir.Constant(_words(width), [value] * width)


def _mask(lanes: list[int]) -> ir.Constant:
    return ir.Constant(_words(len(lanes)), lanes)


def _element(storage: types.Type) -> ir.Type:
    return FLOAT if storage == types.float32 else HALFWORD


def _widen(b: ir.IRBuilder, storage: types.Type, value: ir.Value, width: int) -> ir.Value:
    floats = ir.VectorType(FLOAT, width)
    if storage == types.float32:
        return value
    if storage == types.uint16:
        return b.bitcast(b.shl(b.zext(value, _words(width)), _splat(width, 16)), floats)
    return b.fpext(b.bitcast(value, ir.VectorType(ir.HalfType(), width)), floats)


def _narrow(b: ir.IRBuilder, storage: types.Type, value: ir.Value, width: int) -> ir.Value:
    if storage == types.float32:
        return value
    if storage == types.uint16:
        return _narrow_bfloat16(b, value, width)
    halves = b.fptrunc(value, ir.VectorType(ir.HalfType(), width))
    return b.bitcast(halves, ir.VectorType(HALFWORD, width))


def _narrow_bfloat16(b: ir.IRBuilder, value: ir.Value, width: int) -> ir.Value:
    """Round to the nearest, ties to even; a NaN stays one."""
    bits = b.bitcast(value, _words(width))
    tie = b.and_(b.lshr(bits, _splat(width, 16)), _splat(width, 1))
    rounded = b.lshr(b.add(bits, b.add(tie, _splat(width, 0x7FFF))), _splat(width, 16))
    is_nan = b.fcmp_unordered("uno", value, value)
    return b.trunc(b.select(is_nan, _splat(width, 0x7FC0), rounded), ir.VectorType(HALFWORD, width))


def _vector_at(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value, storage: types.Type, width: int) -> ir.Value:
    return b.bitcast(b.gep(pointer, [index]), ir.VectorType(_element(storage), width).as_pointer())


def _alignment(storage: types.Type) -> int:
    return 4 if storage == types.float32 else 2


@intrinsic
def pointer(_context: Any, _address: Any, tag: Any) -> Any:
    """An address (an integer) as a pointer to elements of the type of ``tag``."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return b.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(tag)(types.int64, tag), generate


@intrinsic
def at(_context: Any, base: Any, _index: Any) -> Any:
    """``base + index``, in elements."""
    return base(base, types.int64), lambda _c, b, _s, v: b.gep(v[0], [v[1]])


@intrinsic
def get(_context: Any, base: Any, _index: Any) -> Any:
    """``base[index]``."""
    return base.dtype(base, types.int64), lambda _c, b, _s, v: b.load(b.gep(v[0], [v[1]]))


@intrinsic
def put(_context: Any, base: Any, _index: Any, _value: Any) -> Any:
    """``base[index] = value``."""

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
        b.store(values[2], b.gep(values[0], [values[1]]))
        return context.get_dummy_value()

    return types.void(base, types.int64, base.dtype), generate


@intrinsic
def fetch_add(_context: Any, base: Any) -> Any:
    """Add one to ``base[0]`` atomically and return what it was: how threads claim work."""

    def generate(_c: Any, b: ir.IRBuilder, _s: Any, values: Any) -> ir.Value:
        return b.atomic_rmw("add", values[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(base), generate


@intrinsic
def stack_floats(_context: Any, count: Any) -> Any:
    """A pointer to ``count`` (a literal) uninitialised float32 on the stack, aligned to a cache line."""

    def generate(_c: Any, b: ir.IRBuilder, _s: Any, _v: Any) -> ir.Value:
        with b.goto_entry_block():
            space = b.alloca(ir.ArrayType(FLOAT, count.literal_value))
        space.align = 64
        return b.bitcast(space, FLOAT.as_pointer())

    if not isinstance(count, types.IntegerLiteral):
        return None
    return types.CPointer(types.float32)(count), generate


def _make_load(lanes: Lanes) -> Any:
    def load(_context: Any, base: Any, _index: Any) -> Any:
        def generate(_c: Any, b: ir.IRBuilder, _s: Any, values: Any) -> ir.Value:
            raw = b.load(_vector_at(b, values[0], values[1], base.dtype, lanes.width))
            raw.align = _alignment(base.dtype)
            return _widen(b, base.dtype, raw, lanes.width)

        return lanes(base, types.int64), generate

    return intrinsic(load)


def _make_store(lanes: Lanes) -> Any:
    def store(_context: Any, base: Any, _index: Any, _value: Any) -> Any:
        def generate(context: Any, b: ir.IRBuilder, _s: Any, values: Any) -> ir.Value:
            target = _vector_at(b, values[0], values[1], base.dtype, lanes.width)
            b.store(_narrow(b, base.dtype, values[2], lanes.width), target).align = _alignment(base.dtype)
            return context.get_dummy_value()

        return types.void(base, types.int64, lanes), generate

    return intrinsic(store)


def _make_zero(lanes: Lanes) -> Any:
    def zero(_context: Any) -> Any:
        return lanes(), lambda _c, _b, _s, _v: ir.Constant(ir.VectorType(FLOAT, lanes.width), [0.0] * lanes.width)

    return intrinsic(zero)


def _make_splat(lanes: Lanes) -> Any:
    def splat(_context: Any, _value: Any) -> Any:
        def generate(_c: Any, b: ir.IRBuilder, _s: Any, values: Any) -> ir.Value:
            undefined = ir.Constant(ir.VectorType(FLOAT, lanes.width), ir.Undefined)
            first = b.insert_element(undefined, values[0], ir.Constant(WORD, 0))
            return b.shuffle_vector(first, undefined, _splat(lanes.width, 0))

        return lanes(types.float32), generate

    return intrinsic(splat)


load8, load16 = _make_load(LANES8), _make_load(LANES16)
store8, store16 = _make_store(LANES8), _make_store(LANES16)
zero8, zero16 = _make_zero(LANES8), _make_zero(LANES16)
splat8, splat16 = _make_splat(LANES8), _make_splat(LANES16)

WIDTH = 16 if get_host_cpu_features().get("avx512f") else 8
load, zero = (load16, zero16) if WIDTH == 16 else (load8, zero8)


@intrinsic
def fma(_context: Any, x: Any, _y: Any, _z: Any) -> Any:
    """``x * y + z`` lane by lane, in one instruction where the processor has it."""

    def generate(_c: Any, b: ir.IRBuilder, _s: Any, v: Any) -> ir.Value:
        return b.fadd(b.fmul(v[0], v[1], flags=("contract",)), v[2], flags=("contract",))

    return x(x, x, x), generate


@intrinsic
def times(_context: Any, x: Any, _y: Any) -> Any:
    """``x * y`` lane by lane."""
    return x(x, x), lambda _c, b, _s, v: b.fmul(v[0], v[1])


@intrinsic
def fold(_context: Any, lanes: Any) -> Any:
    """Eight lanes with the same sum."""

    def generate(_c: Any, b: ir.IRBuilder, _s: Any, v: Any) -> ir.Value:
        if lanes.width == 8:
            return v[0]
        low, high = _mask(list(range(8))), _mask(list(range(8, 16)))
        return b.fadd(b.shuffle_vector(v[0], v[0], low), b.shuffle_vector(v[0], v[0], high))

    return LANES8(lanes), generate


@intrinsic
def add_halves(_context: Any, low: Any, _high: Any, _lanes: Any) -> Any:
    """``low[0:4] += lanes[0:4]`` and ``high[0:4] += lanes[4:8]``, in this order: the two may be one place."""

    def generate(context: Any, b: ir.IRBuilder, _s: Any, v: Any) -> ir.Value:
        for base, lanes in ((v[0], [0, 1, 2, 3]), (v[1], [4, 5, 6, 7])):
            place = b.bitcast(base, ir.VectorType(FLOAT, 4).as_pointer())
            old = b.load(place)
            old.align = 4
            b.store(b.fadd(old, b.shuffle_vector(v[2], v[2], _mask(lanes))), place).align = 4
        return context.get_dummy_value()

    return types.void(low, low, LANES8), generate


@intrinsic
def add(_context: Any, x: Any, _y: Any) -> Any:
    """``x + y`` lane by lane."""
    return x(x, x), lambda _c, b, _s, v: b.fadd(v[0], v[1])


@intrinsic
def total(_context: Any, lanes: Any) -> Any:
    """The sum of all lanes."""

    def generate(_c: Any, b: ir.IRBuilder, _s: Any, values: Any) -> ir.Value:
        value, width = values[0], lanes.width
        while width > 1:
            half = width // 2
            low, high = _mask(list(range(half))), _mask(list(range(half, width)))
            value, width = b.fadd(b.shuffle_vector(value, value, low), b.shuffle_vector(value, value, high)), half
        return b.extract_element(value, ir.Constant(WORD, 0))

    return types.float32(lanes), generate


def _pairwise(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    even = b.shuffle_vector(x, y, _mask([0, 2, 8, 10, 4, 6, 12, 14]))
    odd = b.shuffle_vector(x, y, _mask([1, 3, 9, 11, 5, 7, 13, 15]))
    return b.fadd(even, odd)


@intrinsic
def totals8(_context: Any, r0: Any, _r1: Any, _r2: Any, _r3: Any, _r4: Any, _r5: Any, _r6: Any, _r7: Any) -> Any:
    """The sums of eight vectors of eight lanes, as one vector."""

    def generate(_c: Any, b: ir.IRBuilder, _s: Any, v: Any) -> ir.Value:
        low = _pairwise(b, _pairwise(b, v[0], v[1]), _pairwise(b, v[2], v[3]))
        high = _pairwise(b, _pairwise(b, v[4], v[5]), _pairwise(b, v[6], v[7]))
        near = b.shuffle_vector(low, high, _mask([0, 1, 2, 3, 8, 9, 10, 11]))
        return b.fadd(near, b.shuffle_vector(low, high, _mask([4, 5, 6, 7, 12, 13, 14, 15])))

    return r0(*[r0] * 8), generate


def _transpose8(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Three rounds of interleaving at distance 4, 2, 1 transpose an 8 x 8 block."""
    low, high = _mask([0, 8, 1, 9, 2, 10, 3, 11]), _mask([4, 12, 5, 13, 6, 14, 7, 15])
    for _ in range(3):
        pairs = [(rows[i], rows[i + 4]) for i in range(4)]
        rows = [b.shuffle_vector(x, y, mask) for x, y in pairs for mask in (low, high)]
    return rows


@intrinsic
def store_transposed(
    _context: Any,
    base: Any,
    _stride: Any,
    r0: Any,
    _r1: Any,
    _r2: Any,
    _r3: Any,
    _r4: Any,
    _r5: Any,
    _r6: Any,
    _r7: Any,
) -> Any:
    """Store lane i of row j at ``base[i * stride + j]``, for eight rows of eight lanes."""

    def generate(context: Any, b: ir.IRBuilder, _s: Any, v: Any) -> ir.Value:
        for lane, column in enumerate(_transpose8(b, list(v[2:]))):
            index = b.mul(v[1], ir.Constant(ir.IntType(64), lane))
            b.store(column, _vector_at(b, v[0], index, types.float32, 8)).align = 4
        return context.get_dummy_value()

    return types.void(base, types.int64, *[r0] * 8), generate
