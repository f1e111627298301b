"""Batches as bytes: what is encoded is decoded, and nothing else is taken for one."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.gossip.hearing import Hearing
from sheaf_gateway.gossip.wire import (
    BadBatchError,
    Batch,
    Broke,
    Door,
    Name,
    Piece,
    Sent,
    Service,
    Turned,
    Used,
    decode,
    encode,
    packed,
    unpacked,
)
from sheaf_gateway.routing.router import Router

numbers = st.integers(0, 2**53)
small = st.integers(0, 20)
amounts = st.floats(-1e15, 1e15)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
chains = st.lists(st.integers(0, 2**64 - 1), max_size=128)


def columns(ids):
    return {
        "names": st.lists(st.builds(Name, ids, texts), max_size=4),
        "pieces": st.lists(st.builds(Piece, ids, chains.map(packed)), max_size=3),
        "sent": st.lists(
            st.builds(Sent, ids, ids, ids, ids, ids, ids, ids, st.booleans(), st.booleans(), chains.map(packed)),
            max_size=4,
        ),
        "answered": st.lists(ids, max_size=4),
        "finished": st.lists(ids, max_size=4),
        "doors": st.lists(st.builds(Door, ids, ids, ids), max_size=4),
        "service": st.lists(st.builds(Service, ids, ids, amounts, st.floats(0.5, 100)), max_size=4),
        "used": st.lists(st.builds(Used, ids, ids, amounts, ids), max_size=4),
        "breakers": st.lists(st.builds(Broke, ids, st.booleans()), max_size=4),
        "wanted": st.lists(ids, max_size=4),
        "turned": st.lists(
            st.builds(Turned, ids, ids, ids, st.binary(min_size=8, max_size=8), ids, ids, ids), max_size=4
        ),
    }


def batches(ids, lives):
    flags = {name: st.booleans() for name in ("whole", "anew", "leaving")}
    return st.builds(Batch, life=lives, number=ids, at=st.floats(0, 1e12), live=ids, **flags, **columns(ids))


@given(batches(numbers, numbers))
def test_a_batch_comes_back_as_it_was(batch):
    assert decode(encode(batch)) == batch


@given(chains)
def test_hashes_come_back_as_they_were(chain):
    assert unpacked(packed(chain)) == chain
    assert unpacked(packed(chain) + b"rest") == chain


@given(st.binary(max_size=300))
def test_bytes_that_are_no_batch_are_refused(data):
    with pytest.raises(BadBatchError):
        decode(data)


@given(batches(small, small), st.data())
def test_a_batch_that_was_tampered_with_is_refused_or_is_another_batch(batch, data):
    raw = bytearray(encode(batch))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(raw))
    except BadBatchError:
        return
    assert isinstance(found, Batch)


@pytest.mark.parametrize(
    "broken",
    [
        [2, 1, 1, 0.0, 0],
        [1, -1, 1, 0.0, 0],
        [1, 1, 1, 0.0, 2**60],
        [1, 1, 1, float("inf"), 0],
        [1, 1, 1, 0.0, 0, True, False, False, [[1, "x" * 2000]]],
        [1, 1, 1, 0.0, 0, True, False, False, [], [[1, b"x" * 2000]]],
        [1, 1, 1, 0.0, 0, True, False, False, [], [], [], [], [], [], [[1, 1, float("nan"), 1.0]]],
        [1, 1, 1, 0.0, 0, True, False, False, [], [], [], [], [], [], [[1, 1, 1.0, 0.0]]],
        [1, 1, 1, 0.0, 0, True, False, False, [], [], [], [], [], [], [], [], [], [], "more"],
    ],
)
def test_values_beyond_bounds_are_refused(broken):
    with pytest.raises(BadBatchError):
        decode(msgspec.msgpack.encode(broken))


def test_deep_nesting_is_refused():
    with pytest.raises(BadBatchError):
        decode(b"\x91" * 100_000)


@given(st.lists(batches(small, st.integers(1, 3)), max_size=8))
@settings(max_examples=40, deadline=None)
def test_no_sequence_of_batches_can_break_a_gateway(found):
    router, admission = Router(), Admission()
    admission.tell(on=True)
    hearing = Hearing(1, router, admission)
    for place, batch in enumerate(found):
        hearing.take(batch, float(place))
        assert all(ledger.running >= ledger.told >= 0 for ledger in router.ledgers.values())
        assert all(others.running >= 0 and others.waiting >= 0 for others in admission.others.values())
    hearing.clear()
    assert all((ledger.running, ledger.told) == (0, 0) for ledger in router.ledgers.values())
    assert admission.others == {}
