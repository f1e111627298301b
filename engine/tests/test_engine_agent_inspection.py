"""What an adapter must be before the engine sees it; everything else is refused with a documented reason."""

import gzip
import io
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from engine_agent_helpers import BASE, HIDDEN, LAYERS, VOCAB, header_of, lora_shapes, safetensors, write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_engine.agent.base_model import BaseModel, describe, read_base_model
from sheaf_engine.agent.errors import AdapterError, ConfigError, Reason
from sheaf_engine.agent.inspection import inspect_adapter
from sheaf_engine.agent.peft_config import LARGEST, check_config
from sheaf_engine.agent.tensor_header import LARGEST_HEADER, parse_header

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
LLAMA = describe(BASE)


def inspect(folder: Path, base: BaseModel = LLAMA, max_rank: int = 16, rank: int | None = None) -> Any:
    return inspect_adapter(folder, base, max_rank=max_rank, rank=rank)


def refused(folder: Path, **options: Any) -> tuple[Reason, str]:
    with pytest.raises(AdapterError) as caught:
        inspect(folder, **options)
    assert "\n" not in caught.value.message
    return caught.value.reason, caught.value.message


def test_a_sound_adapter_passes_with_its_rank(tmp_path: Path) -> None:
    found = inspect(write_adapter(tmp_path), rank=4)
    assert (found.rank, found.note) == (4, "")


def test_every_module_of_the_family_and_the_embeddings_may_be_adapted(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for path, (inputs, outputs) in dict(LLAMA.modules or {}).items():
        shapes[f"base_model.model.model.layers.1.{path}.lora_A.weight"] = (4, inputs)
        shapes[f"base_model.model.model.layers.1.{path}.lora_B.weight"] = (outputs, 4)
    shapes["base_model.model.lm_head.lora_A.weight"] = (4, HIDDEN)
    shapes["base_model.model.lm_head.lora_B.weight"] = (VOCAB, 4)
    shapes["base_model.model.model.embed_tokens.lora_embedding_A"] = (4, VOCAB)
    shapes["base_model.model.model.embed_tokens.lora_embedding_B"] = (HIDDEN, 4)
    shapes["base_model.model.model.embed_tokens.base_layer.weight"] = (VOCAB, HIDDEN)
    assert inspect(write_adapter(tmp_path, shapes=shapes)).rank == 4


def test_ranks_by_module_are_held_against_their_tensors(tmp_path: Path) -> None:
    shapes = lora_shapes(4) | {f"{Q0}.lora_A.weight": (8, HIDDEN), f"{Q0}.lora_B.weight": (HIDDEN, 8)}
    config = {"rank_pattern": {"layers.0.self_attn.q_proj": 8}, "alpha_pattern": {"q_proj": 32}}
    assert inspect(write_adapter(tmp_path, shapes=shapes, config=config), rank=8).rank == 8


CONFIGS: dict[str, tuple[dict[str, Any], Reason]] = {
    "another method": ({"peft_type": "PREFIX_TUNING"}, Reason.BAD_CONFIG),
    "no method": ({"peft_type": None}, Reason.BAD_CONFIG),
    "rank zero": ({"r": 0}, Reason.BAD_CONFIG),
    "negative rank": ({"r": -4}, Reason.BAD_CONFIG),
    "rank as text": ({"r": "4"}, Reason.BAD_CONFIG),
    "rank as truth": ({"r": True}, Reason.BAD_CONFIG),
    "fractional rank": ({"r": 4.5}, Reason.BAD_CONFIG),
    "giant rank": ({"r": 10**12}, Reason.BAD_CONFIG),
    "no alpha": ({"lora_alpha": None}, Reason.BAD_CONFIG),
    "alpha as text": ({"lora_alpha": "8"}, Reason.BAD_CONFIG),
    "no targets": ({"target_modules": None}, Reason.BAD_CONFIG),
    "empty targets": ({"target_modules": []}, Reason.BAD_CONFIG),
    "targets of numbers": ({"target_modules": [1, 2]}, Reason.BAD_CONFIG),
    "dora": ({"use_dora": True}, Reason.UNSUPPORTED_FEATURE),
    "bias": ({"bias": "all"}, Reason.UNSUPPORTED_FEATURE),
    "lora bias": ({"lora_bias": True}, Reason.UNSUPPORTED_FEATURE),
    "saved modules": ({"modules_to_save": ["lm_head"]}, Reason.UNSUPPORTED_FEATURE),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, Reason.UNSUPPORTED_FEATURE),
    "alora": ({"alora_invocation_tokens": [1]}, Reason.UNSUPPORTED_FEATURE),
    "qalora": ({"use_qalora": True}, Reason.UNSUPPORTED_FEATURE),
    "replicated layers": ({"layer_replication": [[0, 2]]}, Reason.UNSUPPORTED_FEATURE),
    "transposed": ({"fan_in_fan_out": True}, Reason.UNSUPPORTED_FEATURE),
    "trained tokens": ({"trainable_token_indices": [5]}, Reason.UNSUPPORTED_FEATURE),
    "regular expression": ({"rank_pattern": {"(a+)+$": 4}}, Reason.BAD_CONFIG),
    "alpha expression": ({"alpha_pattern": {".*": 4}}, Reason.BAD_CONFIG),
    "pattern rank": ({"rank_pattern": {"q_proj": "8"}}, Reason.BAD_CONFIG),
    "pattern list": ({"rank_pattern": ["q_proj"]}, Reason.BAD_CONFIG),
    "other rank": ({"r": 8}, Reason.RANK_MISMATCH),
    "rank too high by pattern": ({"rank_pattern": {"o_proj": 64}}, Reason.RANK_TOO_HIGH),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_cannot_be_served_as_trained_is_refused(tmp_path: Path, case: str) -> None:
    changes, reason = CONFIGS[case]
    assert refused(write_adapter(tmp_path, config=changes))[0] is reason


TEXTS = {
    "empty": b"",
    "not json": b"{",
    "a list": b"[]",
    "a number": b"7",
    "invalid utf-8": b'{"peft_type": "\xff\xfe"}',
    "utf-16": '{"peft_type": "LORA"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"peft_type": "LORA"}',
    "nan": b'{"peft_type": "LORA", "r": 4, "lora_alpha": NaN, "target_modules": ["q_proj"]}',
    "infinity": b'{"peft_type": "LORA", "r": 4, "lora_alpha": 1e999, "target_modules": ["q_proj"]}',
    "duplicate key": b'{"peft_type": "LORA", "r": 4, "r": 400, "lora_alpha": 8, "target_modules": ["q_proj"]}',
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep lists": b'{"a":' + b"[" * 200_000,
    "huge": b'{"a": "' + b"x" * LARGEST + b'"}',
    "huge number": b'{"r": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_configuration_that_is_not_sound_json_is_refused(tmp_path: Path, case: str) -> None:
    folder = write_adapter(tmp_path)
    (folder / "adapter_config.json").write_bytes(TEXTS[case])
    assert refused(folder)[0] is Reason.BAD_CONFIG


def changed(**changes: Any) -> dict[str, Any]:
    """A sound header whose first tensor is changed."""
    header = header_of(lora_shapes())
    first = f"{Q0}.lora_A.weight"
    header[first] = header[first] | changes
    return header


def zip_bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10_000_000))
    return content.getvalue()


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('the pickle ran')",)


SIZE = sum(4 * math.prod(shape) for shape in lora_shapes().values())
WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "only a length": (2).to_bytes(8, "little"),
    "length lies": (10**6).to_bytes(8, "little") + b"{}",
    "length of all ones": b"\xff" * 16,
    "huge header": (LARGEST_HEADER + 1).to_bytes(8, "little") + b"{" + b" " * 1000,
    "pickle": pickle.dumps(Evil()),
    "zip bomb": zip_bomb(),
    "gzip bomb": gzip.compress(bytes(10_000_000)),
    "tar": b"adapter_config.json".ljust(512, b"\0") * 3,
    "html": b"<!doctype html><html><body>404</body></html>",
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n",
    "header is a list": safetensors(b"[]"),
    "header is cut": safetensors(b'{"a": {"dtype": "F32"'),
    "header is not utf-8": safetensors(b'{"\xff": {}}'),
    "header with duplicate": safetensors(b'{"a": {"dtype":"F32","shape":[0,1],"data_offsets":[0,0]},"a": 1}'),
    "deep header": safetensors(b'{"a":' * 100_000),
    "no tensors": safetensors({"__metadata__": {"format": "pt"}}),
    "metadata of numbers": safetensors(header_of({"a": (1, 1)}) | {"__metadata__": {"a": 1}}, 4),
    "truncated": safetensors(header_of(lora_shapes()))[:-1],
    "padded": safetensors(header_of(lora_shapes())) + b"x",
    "overlap": safetensors(changed(data_offsets=[4, 4 + 4 * HIDDEN * 4]), lies=True),
    "gap": safetensors(header_of({"a": (1, 1)}) | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, 12),
    "offsets turned": safetensors(changed(data_offsets=[512, 0]), lies=True),
    "negative offset": safetensors(changed(data_offsets=[-4, 508]), lies=True),
    "offsets of text": safetensors(changed(data_offsets=["0", "512"]), lies=True),
    "three offsets": safetensors(changed(data_offsets=[0, 512, 512]), lies=True),
    "beyond the file": safetensors(changed(shape=[2**40, 2**40], data_offsets=[0, 2**47]), lies=True),
    "negative shape": safetensors(changed(shape=[-4, -HIDDEN]), lies=True),
    "not a number shape": safetensors(json.dumps(changed(shape=[4, "nan"])).replace('"nan"', "NaN").encode(), SIZE),
    "fractional shape": safetensors(changed(shape=[4.0, HIDDEN]), lies=True),
    "endless shape": safetensors(changed(shape=[1] * 100), lies=True),
    "unknown dtype": safetensors(changed(dtype="PICKLE"), lies=True),
    "dtype list": safetensors(changed(dtype=["F32"]), lies=True),
    "another key": safetensors(changed(strides=[1, 2]), lies=True),
    "not an object": safetensors({f"{Q0}.lora_A.weight": 7}, 0),
    "integers": safetensors(header_of(lora_shapes(), "I8")),
    "doubles": safetensors(header_of(lora_shapes(), "F64")),
    "one dimension": safetensors(header_of(lora_shapes() | {f"{Q0}.lora_A.weight": (4 * HIDDEN,)})),
    "three dimensions": safetensors(header_of(lora_shapes() | {f"{Q0}.lora_A.weight": (1, 4, HIDDEN)})),
    "no rows": safetensors(header_of(lora_shapes() | {f"{Q0}.lora_A.weight": (0, HIDDEN)})),
    "no lora_B": safetensors(header_of({f"{Q0}.lora_A.weight": (4, HIDDEN)})),
    "no lora_A": safetensors(header_of({f"{Q0}.lora_B.weight": (HIDDEN, 4)})),
    "only base layers": safetensors(header_of({"model.embed_tokens.base_layer.weight": (VOCAB, HIDDEN)})),
    "twice": safetensors(header_of(lora_shapes() | {f"{Q0[17:]}.lora_A.weight": (4, HIDDEN)})),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_not_sound_safetensors_of_lora_are_refused_unopened(tmp_path: Path, case: str) -> None:
    folder = write_adapter(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS[case])
    assert refused(folder)[0] is Reason.BAD_WEIGHTS


def test_an_archive_is_named_as_what_it_is(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    for case, word in (("pickle", "pickle"), ("zip bomb", "zip"), ("gzip bomb", "gzip")):
        (folder / "adapter_model.safetensors").write_bytes(WEIGHTS[case])
        assert word in refused(folder)[1]


BASES: dict[str, tuple[dict[str, tuple[int, ...]], Reason]] = {
    "wider hidden": ({f"{Q0}.lora_A.weight": (4, 64), f"{Q0}.lora_B.weight": (64, 4)}, Reason.WRONG_BASE),
    "other heads": ({f"{Q0}.lora_A.weight": (4, HIDDEN), f"{Q0}.lora_B.weight": (48, 4)}, Reason.WRONG_BASE),
    "layer beyond": (
        {Q0.replace(".0.", f".{LAYERS}.") + f".lora_{p}.weight": s for p, s in (("A", (4, 32)), ("B", (32, 4)))},
        Reason.WRONG_BASE,
    ),
    "layer with zero": (
        {Q0.replace(".0.", ".00.") + f".lora_{p}.weight": s for p, s in (("A", (4, 32)), ("B", (32, 4)))},
        Reason.WRONG_BASE,
    ),
    "unknown module": (
        {Q0.replace("q_proj", "qkv") + f".lora_{p}.weight": s for p, s in (("A", (4, 32)), ("B", (32, 4)))},
        Reason.WRONG_BASE,
    ),
    "embedding of another vocabulary": (
        {"model.embed_tokens.lora_embedding_A": (4, VOCAB + 1), "model.embed_tokens.lora_embedding_B": (HIDDEN, 4)},
        Reason.WRONG_BASE,
    ),
    "grown vocabulary": (
        lora_shapes() | {"base_model.model.model.embed_tokens.base_layer.weight": (VOCAB + 8, HIDDEN)},
        Reason.WRONG_BASE,
    ),
    "rank of B": ({f"{Q0}.lora_A.weight": (4, HIDDEN), f"{Q0}.lora_B.weight": (HIDDEN, 8)}, Reason.RANK_MISMATCH),
    "rank of A": ({f"{Q0}.lora_A.weight": (8, HIDDEN), f"{Q0}.lora_B.weight": (HIDDEN, 4)}, Reason.RANK_MISMATCH),
    "dora vector": (lora_shapes() | {f"{Q0}.lora_magnitude_vector": (HIDDEN,)}, Reason.UNSUPPORTED_FEATURE),
    "bias": (lora_shapes() | {f"{Q0}.lora_B.bias": (HIDDEN,)}, Reason.UNSUPPORTED_FEATURE),
    "whole module": (lora_shapes() | {"base_model.model.lm_head.weight": (VOCAB, HIDDEN)}, Reason.UNSUPPORTED_FEATURE),
    "other naming": (
        {f"{Q0}.lora_A.default.weight": (4, HIDDEN), f"{Q0}.lora_B.default.weight": (HIDDEN, 4)},
        Reason.UNSUPPORTED_FEATURE,
    ),
    "odd name": (lora_shapes() | {"../../etc/passwd": (1, 1)}, Reason.UNSUPPORTED_FEATURE),
}


@pytest.mark.parametrize("case", BASES)
def test_tensors_of_another_base_or_rank_are_refused(tmp_path: Path, case: str) -> None:
    shapes, reason = BASES[case]
    assert refused(write_adapter(tmp_path, shapes=shapes))[0] is reason


def test_a_rank_above_the_models_or_other_than_declared_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, rank=8)
    assert refused(folder, max_rank=4)[0] is Reason.RANK_TOO_HIGH
    assert refused(folder, rank=4)[0] is Reason.RANK_MISMATCH


def test_the_base_that_the_adapter_names_is_quoted(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, config={"base_model_name_or_path": "other/base-7b"})
    assert "other/base-7b" in refused(folder, base=describe(BASE | {"hidden_size": 64}))[1]


def test_an_unknown_architecture_is_checked_for_consistency_only_and_says_so(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path, shapes={"blocks.7.mix.lora_A.weight": (4, 9), "blocks.7.mix.lora_B.weight": (5, 4)}
    )
    found = inspect(folder, base=describe({"model_type": "mamba9"}))
    assert "mamba9" in found.note
    assert refused(folder)[0] is Reason.WRONG_BASE


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"])
def test_families_of_llamas_layout_have_its_shapes(kind: str) -> None:
    modules = describe(BASE | {"model_type": kind, "head_dim": 16}).modules
    assert modules is not None
    assert modules["self_attn.q_proj"] == (32, 64)
    assert modules["self_attn.k_proj"] == (32, 32)
    assert modules["self_attn.o_proj"] == (64, 32)
    assert modules["mlp.gate_proj"] == (32, 64)
    assert modules["mlp.down_proj"] == (64, 32)


def test_packed_and_ungated_families_have_their_own_modules() -> None:
    packed = describe(BASE | {"model_type": "phi3"}).modules or {}
    assert packed["self_attn.qkv_proj"] == (32, 64)
    assert packed["mlp.gate_up_proj"] == (32, 128)
    assert set(describe(BASE | {"model_type": "starcoder2"}).modules or {}) >= {"mlp.c_fc", "mlp.c_proj"}
    assert "mlp.gate_proj" not in (describe(BASE | {"model_type": "arcee"}).modules or {})


def test_a_base_without_figures_is_unknown_and_a_broken_one_is_a_configuration_error(tmp_path: Path) -> None:
    assert "hidden_size" in describe({"model_type": "llama"}).unknown
    assert read_base_model(None).unknown
    assert read_base_model(tmp_path).unknown
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not sound"):
        read_base_model(tmp_path)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_header_parser_fail_otherwise(content: bytes) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_header(content, 10**6)
    assert caught.value.reason is Reason.BAD_WEIGHTS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=4,
)
KEYS = ["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", "peft_type"]


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_no_configuration_makes_the_check_fail_otherwise(changes: dict[str, Any]) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | changes
    reason = None
    try:
        check_config(config)
    except AdapterError as error:
        reason = error.reason
    assert reason in {None, Reason.BAD_CONFIG, Reason.UNSUPPORTED_FEATURE}
