"""Segmentation: every token with an adapter appears once, with its adapter, in the order of the batch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sheaf_engine.kernels.segments import segment

batches = st.lists(st.integers(-1, 5), max_size=60)


@given(batches)
def test_segments_hold_every_token_that_has_an_adapter_and_no_other(slots: list[int]) -> None:
    parts = segment(slots)
    assert sorted(parts.tokens.tolist()) == [token for token, slot in enumerate(slots) if slot >= 0]


@given(batches)
def test_each_segment_is_one_adapter_and_each_adapter_one_segment(slots: list[int]) -> None:
    parts = segment(slots)
    assert parts.slots.tolist() == sorted({slot for slot in slots if slot >= 0})
    for number, slot in enumerate(parts.slots.tolist()):
        rows = parts.tokens[parts.starts[number] : parts.starts[number + 1]].tolist()
        assert rows == [token for token, of in enumerate(slots) if of == slot]


@given(batches)
def test_starts_cover_all_tokens_without_gaps(slots: list[int]) -> None:
    parts = segment(slots)
    assert parts.starts[0] == 0
    assert parts.starts[-1] == len(parts.tokens)
    assert (parts.lengths() > 0).all()
    assert len(parts) == len(parts.slots) == len(parts.starts) - 1


@given(batches)
def test_a_segment_is_a_slice_exactly_when_no_other_token_lies_between(slots: list[int]) -> None:
    parts = segment(slots)
    for number in range(len(parts)):
        rows = parts.tokens[parts.starts[number] : parts.starts[number + 1]]
        neighbours = bool((np.diff(rows) == 1).all())
        found = parts.slice_of(number)
        assert (found is not None) == neighbours
        if found is not None:
            assert list(range(found.start, found.stop)) == rows.tolist()
