"""Durations and sizes mean what Kubernetes users expect, exactly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sheaf_crds.adapter import AdapterSpec
from sheaf_crds.base import format_duration, format_size, parse_duration, parse_size
from sheaf_crds.meta import Status
from sheaf_crds.model import Lora
from sheaf_crds.slo import Percentiles


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("800ms", 0.8),
        ("0.5ms", 0.0005),
        ("30s", 30.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("0s", 0.0),
        ("999999h", 3599996400.0),
    ],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "bad",
    ["", "5", "5 m", "m", "1s1h", "1.2345s", "-1s", "9999999h", "1s\n", -1, True, None, float("inf"), float("nan")],
)
def test_what_is_no_duration_is_refused_with_an_example(bad: object) -> None:
    with pytest.raises(ValueError, match="such as 800ms"):
        parse_duration(bad)


def test_equal_durations_are_equal_numbers_however_they_are_written() -> None:
    assert parse_duration("700ms") == parse_duration("0.7s")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3_599_996_400_000_000))
def test_a_duration_survives_the_way_to_the_api_server_and_back(microseconds: int) -> None:
    seconds = microseconds / 10**6
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (300, "5m"), (5400, "1h30m"), (0.0005, "0.5ms"), (1.25, "1s250ms")]
)
def test_a_duration_is_written_as_people_write_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("512Mi", 2**29), ("4Gi", 2**32), ("1k", 1000), ("0.5Gi", 2**29), ("7", 7), ("1.1k", 1100), (9, 9)],
)
def test_a_size_is_a_kubernetes_quantity(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["", "5GB", "5 Gi", "-1", "Gi", -1, True, None, 1.5])
def test_what_is_no_size_is_refused_with_an_example(bad: object) -> None:
    with pytest.raises(ValueError, match="such as 512Mi"):
        parse_size(bad)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**15 - 1))
def test_a_size_survives_the_way_to_the_api_server_and_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("size", "text"), [(2**31, "2Gi"), (3 * 2**20, "3Mi"), (1000, "1000"), (0, "0")])
def test_a_size_is_written_as_people_write_it(size: int, text: str) -> None:
    assert format_size(size) == text


def test_an_unknown_field_is_refused_and_a_status_of_a_newer_sheaf_is_read() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        AdapterSpec.model_validate({"modelRef": {"name": "m"}, "source": "hf://a/b", "colour": "red"})
    assert Status.model_validate({"observedGeneration": 3, "colour": "red"}).observed_generation == 3


def test_a_condition_is_found_by_its_type() -> None:
    status = Status.model_validate({"conditions": [{"type": "Ready", "status": "True", "reason": "Serving"}]})
    assert status.condition("Ready") is status.conditions[0]
    assert status.condition("Degraded") is None


def test_a_replica_holds_four_adapters_a_slot_unless_told_otherwise() -> None:
    assert Lora(slots=4).capacity == 16
    assert Lora(slots=4, max_adapters=5).capacity == 5


def test_percentiles_give_their_bounds_in_rising_order() -> None:
    assert Percentiles(p99=2.0, p50=1.0).bounds() == ((0.5, 1.0), (0.99, 2.0))
