"""Traces of every format are read as they are meant, and a bad line is named with its remedy."""

import itertools
import json
import time
from pathlib import Path

import pytest
from sheaf.simulator.calls import block_hashes
from sheaf.simulator.market import Market, Zone, read_prices, read_zone
from sheaf.simulator.naming import UnknownNameError, named
from sheaf.simulator.traces import Chat, Shape, TraceError, conversations, read_trace, shaped

MOONCAKE = {"timestamp": 1500, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}
OWN = {"arrival": 2.0, "input_tokens": 100, "output_tokens": 5}


def write(folder: Path, *lines: object, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_mooncake_lines_become_calls_from_time_zero(tmp_path):
    later = {**MOONCAKE, "timestamp": 2500, "hash_ids": [0, 2]}
    calls = read_trace(write(tmp_path, later, MOONCAKE))
    assert [(call.arrival, call.input_tokens, call.output_tokens) for call in calls] == [(0.0, 700, 5), (1.0, 700, 5)]
    first, second = (block_hashes(call, "", (64,))[0] for call in calls)
    assert first[:8] == second[:8]
    assert set(first[8:]).isdisjoint(second[8:])


def test_azure_lines_share_no_prefix(tmp_path):
    lines = ("TIMESTAMP,ContextTokens,GeneratedTokens", *(f"2023-11-16 18:15:4{n}.6805900,374,44" for n in (6, 8)))
    calls = read_trace(write(tmp_path, *lines, name="azure.csv"))
    assert [call.arrival for call in calls] == [0.0, 2.0]
    first, second = (set(block_hashes(call, "", (64,))[0]) for call in calls)
    assert first.isdisjoint(second)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_azure_times_mean_the_same_on_every_machine(tmp_path, monkeypatch, zone):
    """Also where a clock is put forward within the trace, and where the trace names its own zone."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    times = ("01:59:59.5", "03:00:00.6805900", "03:00:01+00:00", "05:00:02.250+02:00", "03:00:03Z")
    lines = ("TIMESTAMP,ContextTokens,GeneratedTokens", *(f"2024-03-31 {text},374,44" for text in times))
    calls = read_trace(write(tmp_path, *lines, name="azure.csv"))
    monkeypatch.undo()
    time.tzset()
    assert [call.arrival for call in calls] == pytest.approx([0.0, 3601.18059, 3601.5, 3602.75, 3603.5], abs=1e-5)


def test_own_lines_name_model_tenant_session_and_prompt(tmp_path):
    line = {**OWN, "model": "pirate", "tenant": "gold", "session": "s", "prompt": [["system", 64]]}
    calls = read_trace(write(tmp_path, line, {**line, "arrival": 3.0, "session": "t"}))
    assert (calls[0].model, calls[0].tenant) == ("pirate", "gold")
    assert calls[0].session != calls[1].session
    assert calls[0].named
    assert [length for _, length in calls[0].segments] == [64, 36]
    assert block_hashes(calls[0], "", (64,)) == block_hashes(calls[1], "", (64,))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no JSON object"),
        ({**MOONCAKE, "hash_ids": [0]}, "1 hash_ids for 700 tokens"),
        ({**MOONCAKE, "hash_ids": "x"}, "hash_ids is no list"),
        ({**MOONCAKE, "input_length": -1}, "input_length is -1"),
        ({**MOONCAKE, "input_length": True}, "input_length is True"),
        ({**MOONCAKE, "output_length": 1 << 40}, "output_length is"),
        ({**MOONCAKE, "timestamp": None}, "timestamp is None"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, said):
    path = write(tmp_path, MOONCAKE, line)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:2: {said}")
    assert ";" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({**OWN, "prompt": [["a", 200]]}, "prompt has 200 tokens, input_tokens 100"),
        ({**OWN, "prompt": [["a", 0]]}, "prompt is no list"),
        ({**OWN, "model": 5}, "model is '5'"),
        ({**OWN, "arrival": float("nan")}, ""),
        ({**OWN, "arrival": -1}, "arrival is -1"),
    ],
)
def test_own_format_says_what_is_wrong(tmp_path, line, said):
    with pytest.raises(TraceError, match=r":2: "):
        read_trace(write(tmp_path, OWN, line))


@pytest.mark.parametrize("text", ["hello", '{"a": 1}', "a,b,c"])
def test_an_unknown_format_is_said_to_be_one(tmp_path, text):
    with pytest.raises(TraceError, match="no known format"):
        read_trace(write(tmp_path, text))


def test_an_empty_or_missing_trace_is_an_error(tmp_path):
    with pytest.raises(TraceError, match="holds no request"):
        read_trace(write(tmp_path))
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "none")


def test_azure_cells_are_checked(tmp_path):
    header = "TIMESTAMP,ContextTokens,GeneratedTokens"
    for line in ("x,1,1", "2023-11-16 18:15:46,many,1", "2023-11-16 18:15:46"):
        with pytest.raises(TraceError, match=r":2: "):
            read_trace(write(tmp_path, header, line, name="azure.csv"))


def test_a_shape_scales_arrivals_and_draws_zipf_for_each_conversation():
    calls = conversations(Chat(seconds=400.0, rate=5.0), 1)
    names = [f"a{n}" for n in range(8)]
    made = shaped(calls, Shape(speed=2.0, adapters=names, tenants=("gold", "free"), seed=1, limit=500))
    assert len(made) == 500
    assert made[-1].arrival == pytest.approx(calls[499].arrival / 2.0)
    assert made == shaped(calls, Shape(speed=2.0, adapters=names, tenants=("gold", "free"), seed=1, limit=500)) or all(
        (one.adapter, one.tenant) == (two.adapter, two.tenant)
        for one, two in zip(made, shaped(calls, Shape(adapters=names, tenants=("gold", "free"), seed=1)), strict=False)
    )
    by_session = {(call.session, call.adapter, call.tenant) for call in made}
    assert len(by_session) == len({call.session for call in made})
    counts = [sum(call.adapter == name for call in made) for name in names]
    assert counts[0] > counts[-1]


def test_generated_conversations_come_in_order_and_grow_over_their_prefix():
    calls = conversations(Chat(seconds=300.0, rate=4.0), 9)
    assert [call.arrival for call in calls] == sorted(call.arrival for call in calls)
    assert 0.5 < len(calls) / (300.0 * 4.0) < 1.5
    session = max(calls, key=lambda call: len(call.segments)).session
    turns = [call for call in calls if call.session == session]
    for before, after in itertools.pairwise(turns):
        assert after.segments[: len(before.segments)] == before.segments
    assert all(sum(length for _, length in call.segments) == call.input_tokens for call in calls)


def test_names_are_found_drawn_or_refused():
    calls = shaped(conversations(Chat(seconds=60.0, rate=4.0), 2), Shape(model="", seed=2))
    drawn = named(calls, ["m"], {"pirate": "m"}, 2)
    assert {(call.model, call.adapter) for call in drawn} == {("m", None), ("m", "pirate")}
    asked = shaped(conversations(Chat(seconds=10.0), 2), Shape(model="ghost"))
    with pytest.raises(UnknownNameError, match="ghost"):
        named(asked, ["m"], {}, 2)


def test_a_zone_has_what_its_trace_says(tmp_path):
    path = write(tmp_path, {"metadata": {"gap_seconds": 10}, "data": [0, 2, 2, 1]}, name="zone.json")
    zone = read_zone(path)
    assert [zone.at(time) for time in (0.0, 9.9, 10.0, 35.0, 1e9)] == [0, 0, 2, 1, 1]
    assert zone.changes() == [(10.0, 2), (30.0, 1)]
    assert read_zone(path, offset_s=20.0).counts == (2, 1)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"metadata": {"gap_seconds": 0}, "data": [1]}',
        '{"metadata": {"gap_seconds": 1}, "data": [-1]}',
        '{"metadata": {"gap_seconds": 1}, "data": []}',
    ],
)
def test_a_bad_spot_trace_is_named(tmp_path, content):
    path = write(tmp_path, content, name="zone.json")
    with pytest.raises(TraceError, match=r"zone\.json"):
        read_zone(path)


def test_prices_are_read_over_the_defaults_and_checked(tmp_path):
    prices = read_prices(write(tmp_path, {"tpu": {"onDemand": 2, "spot": 1}}, name="p.json"))
    market = Market((Zone("z"),), prices)
    assert (market.price("tpu", spot=True), market.price("tpu", spot=False)) == (1.0, 2.0)
    assert market.price("unknown", spot=True) == 0.0
    for wrong in ({"tpu": 5}, {"tpu": {"onDemand": -1, "spot": 1}}, {"tpu": {"onDemand": 1}}):
        with pytest.raises(TraceError, match="tpu has no price"):
            read_prices(write(tmp_path, wrong, name="p.json"))
