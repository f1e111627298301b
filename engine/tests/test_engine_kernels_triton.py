"""The GPU kernels, run by Triton's interpreter on CPU, agree with the float64 specification.

conftest.py chooses the interpreter.
"""

from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sheaf_engine.kernels.reference import apply_reference, error_bound
from sheaf_engine.kernels.segments import segment

LAYOUTS = {
    "empty": [],
    "one": [2],
    "all one": [1] * 9,
    "all none": [-1] * 7,
    "distinct": [3, 1, 0, 2],
    "skewed": [0] * 19 + [1, 3],
    "unsorted": [2, -1, 0, 2, 1, -1, 0, 0, 2, 3, 0],
}
RANKS = (8, 16, 0, 12)
WIDTHS = (40, 24)
pytestmark = pytest.mark.timeout(20, func_only=True)
quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def gpu() -> SimpleNamespace:
    """The Triton modules, with kernels that are interpreted."""
    names = ("plan", "sgmv", "tiles")
    return SimpleNamespace(**{name: import_module(f"sheaf_engine.kernels.triton.{name}") for name in names})


def adapters(dtype: torch.dtype, hidden: int = 48, rank: int = 16) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    a = [torch.randn(len(RANKS), 1, rank, hidden, generator=g) / hidden**0.5 for _ in WIDTHS]
    b = [torch.randn(len(RANKS), 1, width, rank, generator=g) for width in WIDTHS]
    for slot, true in enumerate(RANKS):
        for matrix in a:
            matrix[slot, 0, true:] = 0
        for matrix in b:
            matrix[slot, 0, :, true:] = 0
    return [m.to(dtype) for m in a], [m.to(dtype) for m in b]


def check(
    gpu: SimpleNamespace, slots: Sequence[int], tiles: object, dtype: torch.dtype, *, poison: bool = False
) -> None:
    a, b = adapters(dtype)
    given_b = [m.clone() for m in b]
    if poison:
        for matrix in given_b:
            for slot, true in enumerate(RANKS):
                matrix[slot, 0, :, true:] = float("nan")
    x, y = torch.randn(len(slots), 48).to(dtype), torch.randn(len(slots), sum(WIDTHS)).to(dtype)
    plain_a, plain_b = [m.squeeze(1).unbind(0) for m in a], [m.squeeze(1).unbind(0) for m in b]
    expected = apply_reference(y, x, plain_a, plain_b, slots, 0.5)
    bound = error_bound(y, x, plain_a, plain_b, slots, 0.5)
    batch = gpu.sgmv.Batch.make(64, len(RANKS), "cpu")
    batch.build(torch.tensor(slots, dtype=torch.int64))
    gpu.sgmv.Sgmv(gpu.sgmv.DeviceLayer(tuple(a), tuple(given_b)), WIDTHS, 3).apply(y, x, batch, 0.5, tiles)
    assert ((y.double() - expected).abs() <= bound).all()


def launch(gpu: SimpleNamespace, mode: str, split: int = 2) -> object:
    return gpu.tiles.Tiles(mode=mode, block_r=16, block_k=32, block_n=32, split=split, warps=4, stages=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["split", "fused"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_agrees_with_the_specification(
    gpu: SimpleNamespace, layout: str, mode: str, dtype: torch.dtype
) -> None:
    check(gpu, LAYOUTS[layout], launch(gpu, mode), dtype)


@pytest.mark.parametrize("mode", ["split", "fused"])
def test_padding_behind_the_true_rank_is_never_read(gpu: SimpleNamespace, mode: str) -> None:
    check(gpu, LAYOUTS["unsorted"], launch(gpu, mode), torch.float16, poison=True)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_every_split_of_the_hidden_size_agrees(gpu: SimpleNamespace, split: int) -> None:
    check(gpu, LAYOUTS["unsorted"], launch(gpu, "split", split), torch.float32)


def test_ranks_above_the_block_are_done_in_blocks(gpu: SimpleNamespace) -> None:
    tiles = gpu.tiles.Tiles(mode="fused", block_r=8, block_k=32, block_n=32, split=2, warps=4, stages=2)
    check(gpu, LAYOUTS["skewed"], tiles, torch.float32)


@pytest.mark.parametrize("tokens", [1, 40])
def test_the_shipped_tiles_agree_too(gpu: SimpleNamespace, tokens: int) -> None:
    check(gpu, [0, 1, -1, 3] * (tokens // 4) or [0], None, torch.bfloat16)


@quick
@given(slots=st.lists(st.integers(-1, 5), max_size=150), block_m=st.sampled_from([4, 16, 64]))
def test_the_work_list_holds_each_token_once_under_its_adapter(
    gpu: SimpleNamespace, slots: list[int], block_m: int
) -> None:
    plan = gpu.plan.Plan.make(150, 6, block_m, "cpu")
    plan.build(torch.tensor(slots, dtype=torch.int64))
    found = []
    for tile in range(int(plan.tiles[0])):
        first, count = int(plan.first[tile]), int(plan.count[tile])
        assert 1 <= count <= block_m
        rows = plan.order[first : first + count].tolist()
        assert {slots[row] for row in rows} == {int(plan.slot[tile])}
        found += rows
    assert found == segment(slots).tokens.tolist()


def test_a_plan_serves_one_batch_after_another(gpu: SimpleNamespace) -> None:
    plan = gpu.plan.Plan.make(8, 4, 4, "cpu")
    for slots in ([3] * 8, [-1] * 8, [0, 1]):
        plan.build(torch.tensor(slots))
        assert int(plan.tiles[0]) == len({slot for slot in slots if slot >= 0}) + (slots == [3] * 8)


def test_batches_longer_than_a_block_keep_their_order(gpu: SimpleNamespace) -> None:
    slots = [token % 7 - 1 for token in range(300)]
    plan = gpu.plan.Plan.make(300, 6, 64, "cpu")
    plan.build(torch.tensor(slots))
    assert plan.order[: sum(slot >= 0 for slot in slots)].tolist() == segment(slots).tokens.tolist()


def test_too_many_tokens_are_refused(gpu: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="room for 2"):
        gpu.plan.Plan.make(2, 4, 4, "cpu").build(torch.tensor([0, 1, 2]))


def test_ranks_follow_the_slots(gpu: SimpleNamespace) -> None:
    a, b = adapters(torch.float32)
    layer = gpu.sgmv.DeviceLayer(tuple(a), tuple(b))
    assert layer.ranks.tolist() == [list(RANKS)] * len(WIDTHS)
    a[0][2, 0, 3, 5] = 1.0
    layer.refresh()
    assert layer.ranks[0].tolist() == [8, 16, 4, 12]


def test_the_shipped_table_covers_every_shape_and_admits_that_it_is_not_measured(gpu: SimpleNamespace) -> None:
    for tokens in (1, 32, 33, 256, 8192):
        for rank in (8, 64, 512):
            tiles = gpu.tiles.tiles_for(tokens, rank)
            assert min(tiles.block_r, tiles.block_k, tiles.block_n) >= 16
    assert not gpu.tiles.measured()
    assert "estimates" in gpu.tiles.table()["status"]
    with pytest.raises(ValueError, match="add a row"):
        gpu.tiles.tiles_for(1, 1024)


def test_an_engine_hands_over_one_batch_after_another(gpu: SimpleNamespace) -> None:
    a, b = adapters(torch.float32)
    kernels = gpu.sgmv.TritonKernels(16, len(RANKS), "cpu", programs=2)
    for slots in ([0, 1, 3], [-1, 1, -1, 0]):
        x, y = torch.randn(len(slots), 48), torch.randn(len(slots), sum(WIDTHS))
        plain_a, plain_b = [m.squeeze(1).unbind(0) for m in a], [m.squeeze(1).unbind(0) for m in b]
        expected, bound = apply_reference(y, x, plain_a, plain_b, slots), error_bound(y, x, plain_a, plain_b, slots)
        kernels.step(torch.tensor(slots))
        assert kernels.linear(y, x, a, b, 1.0, WIDTHS)
        assert ((y.double() - expected).abs() <= bound).all()


def test_what_is_not_supported_is_left_to_the_engines_own_kernels(gpu: SimpleNamespace) -> None:
    a, b = adapters(torch.float32)
    kernels = gpu.sgmv.TritonKernels(16, len(RANKS), "cpu", programs=2)
    y = torch.zeros(1, sum(WIDTHS))
    kernels.step(torch.tensor([0]))
    assert not kernels.linear(y, torch.randn(1, 48).half(), a, b, 1.0, WIDTHS)
    strided = [m.transpose(2, 3).contiguous().transpose(2, 3) for m in a]
    assert not kernels.linear(y, torch.randn(1, 48), strided, b, 1.0, WIDTHS)
    assert not y.any()


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ((), (), "one B for each A"),
        ((torch.zeros(2, 1, 8, 16), torch.zeros(2, 1, 8, 32)), (torch.zeros(2, 1, 4, 8),) * 2, "slices of A differ"),
        ((torch.zeros(2, 1, 8, 16),), (torch.zeros(2, 1, 4, 16),), "differs from its A"),
        ((torch.zeros(2, 1, 16, 8).transpose(2, 3),), (torch.zeros(2, 1, 4, 8),), "contiguous"),
    ],
)
def test_adapters_of_another_form_are_refused(
    gpu: SimpleNamespace, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        gpu.sgmv.DeviceLayer(a, b)
