"""Whose turn it is to continue, and which streams of a pod that goes move."""

from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.continuation import notice
from sheaf_gateway.continuation.notice import Drains, Lengths, Progress, remaining, stays
from sheaf_gateway.continuation.pacing import Pacing


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_turns_come_to_interactive_ones_first_and_never_to_too_many(batches, most):
    pacing = Pacing()
    places = {pacing.wait(batch=batch): batch for batch in batches}
    served = []
    while len(served) < len(batches):
        while (place := pacing.next(most)) is not None:
            served.append(place)
            assert pacing.starting <= most
        pacing.started()
    assert [places[place] for place in served] == sorted(batches)
    assert len(pacing) == 0


def test_a_place_that_was_given_up_has_no_turn():
    pacing = Pacing()
    first, second = pacing.wait(batch=False), pacing.wait(batch=False)
    pacing.leave(first)
    assert (len(pacing), pacing.next(5), pacing.next(5)) == (1, second, None)


@given(st.integers(2, 500), st.floats(0.01, 60), st.none() | st.integers(2, 1000), st.floats(0, 500), st.floats(0, 300))
def test_a_stream_that_stays_would_end_in_time(tokens, seconds, limit, mean, left):
    progress = Progress(tokens, seconds, limit)
    needed = remaining(progress, mean) * seconds / (tokens - 1)
    assert stays(progress, mean, left, 2.0) == (needed <= left - 2.0)
    assert stays(progress, mean, left + 10, 2.0) >= stays(progress, mean, left, 2.0)


def test_a_stream_whose_pace_is_not_known_moves():
    assert not stays(Progress(1, 0.0, 5), 0.0, 100.0, 2.0)
    assert remaining(Progress(10, 1.0, None), 0.0) == notice._UNKNOWN


def test_lengths_follow_what_ends():
    lengths = Lengths()
    lengths.observe(100)
    lengths.observe(200)
    assert 100 < lengths.mean < 110


def test_a_pod_goes_when_it_is_said_to_and_else_when_its_drain_timeout_is_over():
    drains = Drains()
    drains.hear([("told", "u", 130.0, 60.0), ("silent", "u", 0.0, 60.0)], 100.0)
    assert drains.ends == {"told": 130.0, "silent": 160.0}
    drains.hear([("silent", "u", 0.0, 60.0)], 150.0)
    assert drains.ends == {"silent": 160.0}
    drains.hear([("silent", "u", 155.0, 60.0)], 151.0)
    assert drains.ends == {"silent": 155.0}
    drains.hear([("silent", "another", 0.0, 60.0)], 200.0)
    assert drains.ends == {"silent": 260.0}
    drains.hear([], 201.0)
    assert drains.ends == {}
