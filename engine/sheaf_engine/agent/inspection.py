"""The check that an adapter passes before the engine sees it: configuration, tensors, base model and declaration
agree.

Nothing is loaded: names, shapes and dtypes come from the safetensors header. For each adapted module of shape (in,
out) LoRA has A of shape (rank, in) and B of shape (out, rank); for embeddings A is (rank, vocabulary) and B is
(hidden, rank).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sheaf_engine.agent.base_model import BaseModel, Shape
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.layout import CONFIG, WEIGHTS
from sheaf_engine.agent.peft_config import PeftConfig, read_peft_config
from sheaf_engine.agent.tensor_header import Tensor, read_header

DTYPES = frozenset({"F16", "BF16", "F32"})
_LORA = re.compile(r"(?:base_model\.model\.)?(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<part>[AB])\.weight")
_EMBEDDING = re.compile(r"(?:base_model\.model\.)?(?P<module>[A-Za-z0-9_.]+)\.lora_embedding_(?P<part>[AB])")
_KEPT_BASE = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?:embed_tokens|lm_head)\.base_layer\.weight")
_LAYER = re.compile(r"model\.layers\.(?P<layer>0|[1-9][0-9]{0,5})\.(?P<path>[a-z0-9_.]+)")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an accepted adapter is: its highest rank, and what could not be checked (empty where all was)."""

    rank: int
    note: str = ""


@dataclass(slots=True)
class _Pair:
    a: Tensor | None = None
    b: Tensor | None = None
    embedding: bool = False


def inspect_adapter(folder: Path, base: BaseModel, *, max_rank: int, rank: int | None) -> Inspection:
    """Check the adapter in `folder`; AdapterError says what is wrong with it."""
    config = read_peft_config(folder / CONFIG)
    if rank is not None and config.highest_rank != rank:
        _refuse(Reason.RANK_MISMATCH, f"the adapter has rank {config.highest_rank}, but rank {rank} was declared")
    if config.highest_rank > max_rank:
        _refuse(
            Reason.RANK_TOO_HIGH,
            f"the adapter has rank {config.highest_rank}, the model accepts up to {max_rank}; raise spec.lora.maxRank",
        )
    pairs = _pairs(read_header(folder / WEIGHTS), base)
    for module, pair in pairs.items():
        _check_pair(module, pair, config, base)
    return Inspection(config.highest_rank, base.unknown)


def _refuse(reason: Reason, message: str) -> NoReturn:
    raise AdapterError(reason, message)


def _pairs(tensors: Mapping[str, Tensor], base: BaseModel) -> dict[str, _Pair]:
    pairs: dict[str, _Pair] = {}
    for name, tensor in tensors.items():
        match = _LORA.fullmatch(name) or _EMBEDDING.fullmatch(name)
        if match is None:
            _check_kept(name, tensor, base)
            continue
        pair = pairs.setdefault(match["module"], _Pair())
        pair.embedding = "lora_embedding" in name
        _place(pair, match["part"], name, tensor)
    if not pairs:
        _refuse(Reason.BAD_WEIGHTS, "the weights hold no lora_A and lora_B at all")
    return pairs


def _check_kept(name: str, tensor: Tensor, base: BaseModel) -> None:
    if not _KEPT_BASE.fullmatch(name):
        _refuse(
            Reason.UNSUPPORTED_FEATURE,
            f"tensor {name[:160]!r} is not a lora_A or lora_B; the engine would not apply it",
        )
    if base.modules is not None and tensor.shape != (base.vocabulary, base.hidden):
        _refuse(Reason.WRONG_BASE, f"tensor {name} of shape {tensor.shape} belongs to another vocabulary")


def _place(pair: _Pair, part: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        _refuse(Reason.BAD_WEIGHTS, f"tensor {name[:160]!r} is {tensor.dtype}; LoRA weights are F16, BF16 or F32")
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        _refuse(Reason.BAD_WEIGHTS, f"tensor {name[:160]!r} has the shape {tensor.shape}, not two positive numbers")
    if (pair.a if part == "A" else pair.b) is not None:
        _refuse(Reason.BAD_WEIGHTS, f"tensor {name[:160]!r} is there twice, with and without its prefix")
    setattr(pair, part.lower(), tensor)


def _check_pair(module: str, pair: _Pair, config: PeftConfig, base: BaseModel) -> None:
    if pair.a is None or pair.b is None:
        part = "lora_A" if pair.a is None else "lora_B"
        _refuse(Reason.BAD_WEIGHTS, f"module {module[:160]} has no {part}")
    rank = config.rank_of(module)
    if pair.a.shape[0] != rank or pair.b.shape[1] != rank:
        _refuse(
            Reason.RANK_MISMATCH,
            f"module {module[:160]} has lora_A {pair.a.shape} and lora_B {pair.b.shape}, but adapter_config.json "
            f"gives it rank {rank}",
        )
    expected = _expected(module, pair, base, config)
    if expected is not None and (pair.a.shape[1], pair.b.shape[0]) != expected:
        _refuse(
            Reason.WRONG_BASE,
            f"module {module[:160]} was trained for ({pair.a.shape[1]}, {pair.b.shape[0]}) features, the base model "
            f"has {expected}{_trained_for(config)}",
        )


def _trained_for(config: PeftConfig) -> str:
    return f"; adapter_config.json names the base {config.base!r}" if config.base else ""


def _expected(module: str, pair: _Pair, base: BaseModel, config: PeftConfig) -> Shape | None:
    if base.modules is None:
        return None
    if module == "model.embed_tokens" and pair.embedding:
        return base.vocabulary, base.hidden
    if module == "lm_head" and not pair.embedding:
        return base.hidden, base.vocabulary
    match = _LAYER.fullmatch(module)
    if match is None or pair.embedding or match["path"] not in base.modules:
        _refuse(
            Reason.WRONG_BASE,
            f"module {module[:160]} does not exist in the base model ({base.name}){_trained_for(config)}",
        )
    if int(match["layer"]) >= base.layers:
        _refuse(
            Reason.WRONG_BASE,
            f"module {module[:160]} is of layer {match['layer']}, the base has {base.layers}{_trained_for(config)}",
        )
    return base.modules[match["path"]]
