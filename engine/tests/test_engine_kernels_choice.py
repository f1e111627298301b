"""The choice of form is a function of shape and machine alone."""

from hypothesis import given
from hypothesis import strategies as st
from sheaf_engine.kernels.choice import Form, choose, gemm_from, workers


@given(st.integers(1, 100_000), st.booleans(), st.booleans(), st.booleans())
def test_what_the_grouped_kernel_cannot_take_is_a_matrix_product(
    length: int, f32: bool, bf16: bool, native: bool
) -> None:
    crossover = gemm_from(grouped=False, rank=16, float32=f32, bfloat16=bf16, native_bfloat16=native)
    assert choose(length, crossover) is Form.GEMM


@given(st.booleans(), st.booleans(), st.booleans())
def test_decode_is_grouped_on_every_machine(f32: bool, bf16: bool, native: bool) -> None:
    crossover = gemm_from(grouped=True, rank=16, float32=f32, bfloat16=bf16, native_bfloat16=native)
    assert choose(1, crossover) is Form.GROUPED


@given(st.integers(1, 1 << 40))
def test_half_precision_without_matrix_units_is_never_converted_for_a_matrix_product(length: int) -> None:
    assert (
        choose(length, gemm_from(grouped=True, rank=16, float32=False, bfloat16=True, native_bfloat16=False))
        is Form.GROUPED
    )
    assert (
        choose(length, gemm_from(grouped=True, rank=16, float32=False, bfloat16=False, native_bfloat16=True))
        is Form.GROUPED
    )


def test_long_segments_go_to_the_matrix_units_where_there_are_some() -> None:
    assert (
        choose(4096, gemm_from(grouped=True, rank=16, float32=True, bfloat16=False, native_bfloat16=False)) is Form.GEMM
    )
    assert (
        choose(4096, gemm_from(grouped=True, rank=16, float32=False, bfloat16=True, native_bfloat16=True)) is Form.GEMM
    )


def test_higher_ranks_pay_off_as_matrix_products_earlier() -> None:
    low, high = (
        gemm_from(grouped=True, rank=rank, float32=True, bfloat16=False, native_bfloat16=False) for rank in (16, 64)
    )
    assert 1 < high < low


@given(st.integers(0, 1 << 50), st.integers(1, 256))
def test_small_calls_stay_on_one_thread_and_none_takes_more_than_there_are(work: int, threads: int) -> None:
    team = workers(work, threads)
    assert 1 <= team <= threads
    assert team == 1 or work // team >= 65_536
