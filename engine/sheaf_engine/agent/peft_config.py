"""adapter_config.json: what PEFT wrote about the adapter, reduced to what the engine can serve.

Refused is what vLLM refuses, and what it would accept and compute differently from PEFT: a feature that changes the
forward pass must never be dropped silently. Patterns are regular expressions that the engine runs; only plain module
names are let through.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.strict_json import is_int, parse_object

LARGEST = 2**20
MOST_PATTERNS = 4096
_PLAIN = re.compile(r"\^?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga", "true", "false"})
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a LoRA bias",
    "alora_invocation_tokens": "Activated LoRA",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapted parameters outside of linear modules",
    "megatron_config": "Megatron modules",
    "corda_config": "CorDA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What the tensors are held against."""

    rank: int
    rank_pattern: Mapping[str, int]
    base: str

    @property
    def highest_rank(self) -> int:
        """The highest rank that any module may have."""
        return max(self.rank, *self.rank_pattern.values()) if self.rank_pattern else self.rank

    def rank_of(self, module: str) -> int:
        """The rank that PEFT gives a module (its full dotted name): the first pattern that is the name's end."""
        for pattern, rank in self.rank_pattern.items():
            name = pattern.removeprefix("^")
            if module == name or (not pattern.startswith("^") and module.endswith(f".{name}")):
                return rank
        return self.rank


def _bad(message: str) -> NoReturn:
    raise AdapterError(Reason.BAD_CONFIG, f"adapter_config.json: {message}")


def read_peft_config(path: Path) -> PeftConfig:
    """The configuration in that file."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        _bad("it is larger than 1 MiB")
    try:
        return check_config(parse_object(content))
    except ValueError as error:
        _bad(str(error))


def check_config(config: Mapping[str, Any]) -> PeftConfig:
    """The configuration, if it is a plain LoRA that the engine computes as PEFT does."""
    if config.get("peft_type") != "LORA":
        _bad(f"peft_type is {str(config.get('peft_type'))[:40]!r}; only LORA can be served")
    _check_features(config)
    rank = config.get("r")
    if not _is_rank(rank):
        _bad("r, the rank, is not a positive whole number")
    _check_scale(config.get("lora_alpha"), "lora_alpha")
    _check_targets(config.get("target_modules"))
    for alpha in _pattern(config, "alpha_pattern").values():
        _check_scale(alpha, "alpha_pattern")
    ranks = _pattern(config, "rank_pattern")
    if not all(_is_rank(value) for value in ranks.values()):
        _bad("rank_pattern has a rank that is not a positive whole number")
    return PeftConfig(rank, ranks, str(config.get("base_model_name_or_path") or "")[:200])


def _is_rank(value: object) -> TypeGuard[int]:
    return is_int(value) and 0 < value <= 65536


def _check_features(config: Mapping[str, Any]) -> None:
    wrong = [what for key, what in _REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        wrong.append("trained biases")
    if config.get("fan_in_fan_out"):
        wrong.append("transposed weights (fan_in_fan_out)")
    init = config.get("init_lora_weights", True)
    if not isinstance(init, bool) and str(init).lower() not in _PLAIN_INITS:
        wrong.append(f"init_lora_weights={str(init)[:40]!r}, which changes the base weights")
    if wrong:
        raise AdapterError(
            Reason.UNSUPPORTED_FEATURE,
            f"adapter_config.json asks for {', '.join(wrong)}; the engine serves plain LoRA only: convert or merge it",
        )


def _check_scale(value: object, name: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        _bad(f"{name} is not a number")


def _check_targets(targets: object) -> None:
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, list) or not names or len(names) > 100_000:
        _bad("target_modules is neither a text nor a list of names")
    if not all(isinstance(name, str) and name for name in names):
        _bad("target_modules holds something else than names")


def _pattern(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict) or len(pattern) > MOST_PATTERNS:
        _bad(f"{key} is not an object of module names")
    odd = next((name for name in pattern if not _PLAIN.fullmatch(name)), None)
    if odd is not None:
        _bad(f"{key} has {odd[:80]!r}; only plain module names are accepted there, no expressions")
    return pattern
