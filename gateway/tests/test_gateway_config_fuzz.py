"""Files that people write: any bytes make a ring of keys, a configuration, or one line that says what is wrong."""

import json
import time

import orjson
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sheaf_gateway.api.keys import KeyRing, read_keys
from sheaf_gateway.config import ConfigError, GatewayConfig, load_config

FUZZ = settings(max_examples=60, deadline=None)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
tags = st.sampled_from(
    ["", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!null ", "!x ", "&a "]
)
scalars = st.sampled_from(
    ['""', "x", "_", "0b", "2001-99-99", "1:99", ".", "*a", "[", "]", "{a: b}", "? a", "<<: 1", "9" * 5000]
)
pieces = st.lists(
    st.sampled_from(["keys", ":", " ", "\n", "- ", "  ", ",", "name", "sha256"]) | tags | scalars, max_size=14
)
keys = st.fixed_dictionaries(
    {"name": st.text(max_size=4) | JSON, "tenant": st.text(max_size=4) | JSON},
    optional={
        "sha256": st.sampled_from(["0" * 64, "0" * 32 + "1" * 32, "x" * 64]),
        "scopes": JSON,
        "models": JSON,
        "limits": JSON,
        "class": JSON,
    },
)


def one_line(error: Exception) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 4096
    return text


def ring(raw: bytes) -> KeyRing | None:
    try:
        return read_keys(raw)
    except ValueError as error:
        one_line(error)
        return None


@FUZZ
@given(st.binary(max_size=60) | pieces.map("".join).map(str.encode))
@example(b'!!int ""')
@example(b"!!bool x")
@example(b"!!timestamp x")
@example(b"[" * 200_000)
@example(b"- " * 50_000)
@example(b"? " * 50_000)
@example(b"a: &a [*a]")
def test_bytes_are_a_ring_of_keys_or_one_line_of_what_is_wrong(raw):
    ring(raw)


@FUZZ
@given(st.lists(keys | JSON, max_size=3))
def test_the_same_keys_are_read_from_yaml_and_json(entries):
    document = {"keys": json.loads(json.dumps(entries))}
    assert (ring(json.dumps(document).encode()) is None) == (ring(yaml.safe_dump(document).encode()) is None)


def test_aliases_that_multiply_are_refused_at_once():
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x]"] + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 9)]
    began = time.thread_time()
    with pytest.raises(ValueError, match="keys"):
        read_keys("\n".join([*lines, "keys: *a8"]).encode())
    assert time.thread_time() - began < 4.0


def test_many_keys_as_json_are_read_quickly():
    entries = [{"name": f"n{n}", "tenant": "t", "sha256": f"{n:032x}{n:032x}"} for n in range(20_000)]
    began = time.thread_time()
    read_keys(orjson.dumps({"keys": entries}))
    assert time.thread_time() - began < 4.0


@FUZZ
@given(st.binary(max_size=60) | JSON.map(lambda found: json.dumps(found).encode()), JSON)
@example(b"[" * 200_000, None)
@example(b'{"a":' * 50_000, None)
def test_any_configuration_file_is_taken_or_refused_in_one_line(tmp_path_factory, raw, value):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as refused:
        load_config(path, {})
    one_line(refused.value)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(sorted(field.alias or name for name, field in GatewayConfig.model_fields.items())),
        JSON,
        max_size=4,
    ),
    st.dictionaries(st.sampled_from(["namespace", "kubeconfig", "listen", "workers"]), st.text(max_size=4), max_size=2),
)
def test_any_value_of_any_field_is_taken_or_refused_by_name(tmp_path_factory, document, flags):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps({"fleetFile": "f", **document}))
    try:
        assert load_config(path, flags).limits.max_body >= 1024
    except ConfigError as error:
        one_line(error)
