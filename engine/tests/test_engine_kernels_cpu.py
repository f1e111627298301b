"""The CPU kernels agree with the float64 specification for every layout of segments, storage type and rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sheaf_engine.kernels import choice, grouped
from sheaf_engine.kernels.cpu import CpuKernels
from sheaf_engine.kernels.layer import STORAGE, Layer, true_rank
from sheaf_engine.kernels.reference import apply_reference, error_bound

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANKS = [0, 1, 4, 8, 12, 16, 32, 64, 128]
LAYOUTS = {
    "empty": [],
    "one": [2],
    "all one": [1] * 9,
    "all none": [-1] * 7,
    "distinct": [3, 1, 0, 2],
    "skewed": [0] * 70 + [1, 2, 3],
    "unsorted": [2, -1, 0, 2, 1, -1, 0, 0, 2, 3, 0],
    "blocks": [1] * 5 + [-1] * 3 + [0] * 33 + [1] * 2,
}
pytestmark = pytest.mark.timeout(20, func_only=True)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile once, outside the time of any test (it takes seconds when the disk cache is cold)."""
    for storage in STORAGE.values():
        grouped.compiled(storage)


@dataclass
class Case:
    x: torch.Tensor
    y: torch.Tensor
    a: list[torch.Tensor]
    b: list[torch.Tensor]

    @property
    def layer(self) -> Layer:
        return Layer.stacked(self.a, self.b)

    def check(self, kernels: CpuKernels, slots: Sequence[int], scale: float = 1.0, layer: Layer | None = None) -> None:
        a, b = [m.squeeze(1).unbind(0) for m in self.a], [m.squeeze(1).unbind(0) for m in self.b]
        expected = apply_reference(self.y, self.x, a, b, slots, scale)
        bound = error_bound(self.y, self.x, a, b, slots, scale)
        before, result = self.y.clone(), self.y.clone()
        kernels.apply(kernels.call(layer or self.layer), result, self.x, kernels.step(slots), scale)
        assert ((result.double() - expected).abs() <= bound).all()
        untouched = [token for token, slot in enumerate(slots) if slot < 0]
        assert torch.equal(result[untouched], before[untouched])


def make(
    tokens: int,
    *,
    hidden: int = 64,
    widths: Sequence[int] = (48, 16),
    ranks: Sequence[int] = (8, 16, 4, 12),
    rank: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    g = torch.Generator().manual_seed(seed)
    a = [torch.randn(len(ranks), 1, rank, hidden, generator=g) / hidden**0.5 for _ in widths]
    b = [torch.randn(len(ranks), 1, width, rank, generator=g) for width in widths]
    for slot, true in enumerate(ranks):
        for matrix in a:
            matrix[slot, 0, true:] = 0
        for matrix in b:
            matrix[slot, 0, :, true:] = 0
    x, y = torch.randn(tokens, hidden, generator=g), torch.randn(tokens, sum(widths), generator=g)
    return Case(x.to(dtype), y.to(dtype), [m.to(dtype) for m in a], [m.to(dtype) for m in b])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_compiler", [True, False], ids=["compiled", "plain"])
def test_every_layout_of_segments_agrees_with_the_specification(
    layout: str, dtype: torch.dtype, with_compiler: bool
) -> None:
    slots = LAYOUTS[layout]
    make(len(slots), dtype=dtype).check(CpuKernels(compiled=with_compiler), slots)


@quick
@given(
    slots=st.lists(st.integers(-1, 3), max_size=80),
    hidden=st.sampled_from([16, 48, 512, 528, 1040]),
    widths=st.lists(st.sampled_from([8, 24, 32, 40, 136, 264]), min_size=1, max_size=3),
    ranks=st.tuples(*[st.sampled_from(RANKS)] * 4),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 0.5, -2.0]),
    seed=st.integers(0, 1000),
)
def test_any_batch_agrees_with_the_specification(
    slots: list[int],
    hidden: int,
    widths: list[int],
    ranks: tuple[int, ...],
    dtype: torch.dtype,
    scale: float,
    seed: int,
) -> None:
    case = make(len(slots), hidden=hidden, widths=widths, ranks=ranks, rank=128, dtype=dtype, seed=seed)
    case.check(CpuKernels(), slots, scale)


@quick
@given(slots=st.lists(st.integers(-1, 3), max_size=40), hidden=st.integers(1, 70), width=st.integers(1, 40))
def test_odd_sizes_are_right_too(slots: list[int], hidden: int, width: int) -> None:
    case = make(len(slots), hidden=hidden, widths=(width,), dtype=torch.bfloat16)
    case.check(CpuKernels(), slots)


def test_long_float32_segments_take_the_matrix_product_and_the_rest_stays_grouped() -> None:
    slots = [0] * choice.FLOAT32_CROSSOVER + [1, -1, 2, 1]
    make(len(slots)).check(CpuKernels(), slots)
    interleaved = [0, 1] * choice.FLOAT32_CROSSOVER
    make(len(interleaved)).check(CpuKernels(), interleaved)


def test_layers_share_a_step_and_an_empty_slot_adds_nothing_in_any_form() -> None:
    slots = [1] * 3 + [0] * 3 + [2]
    case = make(len(slots), ranks=(8, 0, 16, 4))
    kernels = CpuKernels(compiled=False)
    step = kernels.step(slots)
    for call in (kernels.call(case.layer), kernels.call(case.layer)):
        result = case.y.clone()
        kernels.apply(call, result, case.x, step)
        assert torch.equal(result[:3], case.y[:3])
        assert not torch.equal(result[3:6], case.y[3:6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_segments_and_slices_longer_than_every_block_agree(dtype: torch.dtype) -> None:
    slots = [1] * (2 * grouped.EXPAND_TOKENS + 7) + [0] * 5
    case = make(len(slots), hidden=2 * grouped.DEPTH_BLOCK + 16, widths=(grouped.EXPAND_TILE + 40,), dtype=dtype)
    kernels, result = CpuKernels(), case.y.clone()
    kernels.apply(kernels.call(case.layer), result, case.x, kernels.step(slots))
    a, b = [m.squeeze(1).unbind(0) for m in case.a], [m.squeeze(1).unbind(0) for m in case.b]
    assert ((result.double() - apply_reference(case.y, case.x, a, b, slots)).abs() <= 0.1).all()
    rows = [0, 127, 128, 129, 255, 256, 262, 263, 267]
    part = Case(case.x[rows], case.y[rows], case.a, case.b)
    expected = apply_reference(part.y, part.x, a, b, [slots[row] for row in rows])
    bound = error_bound(part.y, part.x, a, b, [slots[row] for row in rows])
    assert ((result[rows].double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_behind_the_true_rank_is_never_read_into_a_result(dtype: torch.dtype) -> None:
    """B's columns behind the true rank are poisoned: a kernel that does the padded work would show it."""
    slots = [0, 1, 1, 2] + [3] * 9
    case = make(len(slots), ranks=(8, 16, 8, 24), rank=64, dtype=dtype)
    poisoned = [b.clone() for b in case.b]
    for b in poisoned:
        for slot, rank in enumerate((8, 16, 8, 24)):
            b[slot, 0, :, rank:] = float("nan")
    case.check(CpuKernels(), slots, layer=Layer.stacked(case.a, poisoned))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poisoned_outputs_of_tokens_without_adapter_do_not_leak(dtype: torch.dtype) -> None:
    slots = [0, -1, 1, -1, 0, 0, 0, 0, -1]
    case = make(len(slots), dtype=dtype)
    case.y[[1, 3, 8]] = float("nan")
    kernels, result = CpuKernels(), case.y.clone()
    kernels._scratch = torch.full((4096,), float("nan"))
    kernels.apply(kernels.call(case.layer), result, case.x, kernels.step(slots))
    assert result[[0, 2, 4, 5, 6, 7]].isfinite().all()
    assert result[[1, 3, 8]].isnan().all()


def test_a_nan_in_an_output_stays_a_nan_and_stays_where_it_is() -> None:
    case = make(3, dtype=torch.bfloat16)
    case.y[1, 5] = float("nan")
    CpuKernels().apply(CpuKernels().call(case.layer), case.y, case.x, CpuKernels().step([0, 1, 2]))
    assert case.y.isnan().nonzero().tolist() == [[1, 5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adapters_may_lie_anywhere(dtype: torch.dtype) -> None:
    """Matrices in separate allocations, B a column slice of something wider, in an order of its own."""
    slots = [0, 2, 2, 1, 3, 3, 3, 3, 3, -1]
    case = make(len(slots), dtype=dtype)
    a = [[matrix[slot, 0].clone() for slot in range(4)] for matrix in case.a]
    wide = [
        [torch.cat([m[slot, 0], torch.full_like(m[slot, 0], float("nan"))], dim=1) for slot in range(4)] for m in case.b
    ]
    b = [[matrix[:, :16] for matrix in slice_b] for slice_b in wide]
    case.check(CpuKernels(), slots, layer=Layer.scattered(a, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs_and_outputs_are_taken_as_they_are(dtype: torch.dtype) -> None:
    slots = [0, 2, 2, 1, -1, 3, 3, 3, 3]
    case = make(len(slots), dtype=dtype)
    case.x = torch.cat([case.x, case.x], dim=1)[:, 32:96]
    case.y = torch.cat([case.y, case.y], dim=1)[:, :64]
    case.check(CpuKernels(), slots)
    case.x = case.x.T.contiguous().T
    case.check(CpuKernels(), slots)


def test_outputs_of_another_type_than_the_adapters_are_right() -> None:
    slots = [0, 1, -1, 2, 2]
    case = make(5, dtype=torch.bfloat16)
    case.y = case.y.float()
    case.check(CpuKernels(), slots)


def test_a_slot_loaded_again_counts_at_once_whatever_was_known_of_it() -> None:
    slots = [0, 0, 1]
    case = make(3, ranks=(4, 0, 0, 0))
    kernels = CpuKernels()
    layer = case.layer
    case.check(kernels, slots, layer=layer)
    assert layer.ranks[:, :2].tolist() == [[4, 0], [4, 0]]
    with torch.inference_mode():
        for matrix in case.a:
            matrix[1, 0, :16].copy_(torch.randn(16, 64))
    case.check(kernels, slots, layer=layer)
    assert layer.ranks[:, :2].tolist() == [[4, 16], [4, 16]]


@given(st.integers(0, 16), st.integers(0, 63))
def test_the_true_rank_is_the_last_row_in_use(rank: int, column: int) -> None:
    a = torch.zeros(16, 64)
    if rank:
        a[rank - 1, column] = 1e-30
    assert true_rank(a) == rank


def test_a_prepared_layer_follows_a_changing_batch() -> None:
    case = make(9)
    kernels, call = CpuKernels(), None
    call = kernels.call(case.layer)
    for slots in ([0] * 9, [1, 2, 3] * 3, [-1] * 9, [3] * 8 + [-1]):
        result = case.y.clone()
        kernels.apply(call, result, case.x, kernels.step(slots))
        a, b = [m.squeeze(1).unbind(0) for m in case.a], [m.squeeze(1).unbind(0) for m in case.b]
        expected = apply_reference(case.y, case.x, a, b, slots)
        assert ((result.double() - expected).abs() <= error_bound(case.y, case.x, a, b, slots)).all()


def test_slices_may_go_to_columns_of_their_own() -> None:
    case = make(4, widths=(16, 8))
    kernels = CpuKernels()
    y = torch.zeros(4, 64)
    kernels.apply(kernels.call(case.layer, widths=(32, 8), offset=8), y, case.x, kernels.step([0, 1, 2, 3]))
    dense = torch.zeros(4, 24)
    kernels.apply(kernels.call(case.layer), dense, case.x, kernels.step([0, 1, 2, 3]))
    assert torch.equal(y[:, 8:24], dense[:, :16])
    assert torch.equal(y[:, 40:48], dense[:, 16:])
    assert not y[:, :8].any()
    assert not y[:, 24:40].any()
    assert not y[:, 48:].any()


def test_many_threads_give_the_answer_of_one() -> None:
    slots = np.repeat(np.arange(4), 40)
    case = make(160, hidden=512, widths=(256, 128), dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            result = case.y.clone()
            kernels = CpuKernels()
            kernels.apply(kernels.call(case.layer), result, case.x, kernels.step(slots))
            results.append(result)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ([], [], "one B for each A"),
        ([torch.zeros(2, 8, 16)], [], "one B for each A"),
        ([torch.zeros(2, 8, 16)], [torch.zeros(3, 16, 8)], "same slots"),
        ([torch.zeros(2, 8, 16)], [torch.zeros(2, 16, 16)], "another rank"),
        ([torch.zeros(2, 8, 16), torch.zeros(2, 8, 32)], [torch.zeros(2, 16, 8)] * 2, "hidden sizes"),
    ],
)
def test_adapters_that_do_not_fit_together_are_refused(a: list[torch.Tensor], b: list[torch.Tensor], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Layer.stacked(a, b)
