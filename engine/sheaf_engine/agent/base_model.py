"""The modules of a base model that LoRA can change, with their dimensions, derived from its config.json.

For decoder families that share Llama's layout the shapes follow from the configuration (hidden size H, heads A of
size D, key-value heads K, intermediate size I, vocabulary V). For other architectures nothing is claimed:
`BaseModel.modules` is None, with the reason in `unknown`, and only the consistency of the adapter with itself is
checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sheaf_engine.agent.errors import ConfigError
from sheaf_engine.agent.strict_json import is_int, parse_object

LARGEST_CONFIG = 4 * 2**20
SEPARATE = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "starcoder2",
        "granite", "olmo", "olmo2", "cohere", "cohere2", "exaone4", "helium", "seed_oss", "arcee", "ministral",
    }
)  # fmt: skip
PACKED = frozenset({"phi3"})
UNGATED = frozenset({"starcoder2", "arcee"})

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What is known of the base model.

    Attributes:
        name: the model type as config.json gives it.
        layers: number of decoder layers.
        modules: (in, out) features of each module by its path within a layer, such as `self_attn.q_proj`.
        vocabulary: rows of the embedding.
        hidden: features of the hidden state.
        unknown: why the modules are not known; empty where they are.
    """

    name: str = ""
    layers: int = 0
    modules: Mapping[str, Shape] | None = None
    vocabulary: int = 0
    hidden: int = 0
    unknown: str = ""


def read_base_model(folder: Path | None) -> BaseModel:
    """The base model in that folder; ConfigError where its config.json is there but not readable."""
    if folder is None or not (folder / "config.json").exists():
        return BaseModel(unknown="the base model's config.json is not at hand")
    try:
        with (folder / "config.json").open("rb") as file:
            return describe(parse_object(file.read(LARGEST_CONFIG)))
    except OSError as error:
        raise ConfigError(f"{folder}/config.json cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{folder}/config.json is not sound: {error}") from error


def describe(config: Mapping[str, Any]) -> BaseModel:
    """The modules that follow from a config.json."""
    kind = str(config.get("model_type", ""))
    if kind not in SEPARATE | PACKED:
        return BaseModel(name=kind, unknown=f"the layout of model type {kind!r} is not known here")
    missing = [name for name in _NEEDED if not is_int(config.get(name)) or config[name] < 1]
    if missing:
        return BaseModel(name=kind, unknown=f"config.json does not give {', '.join(missing)}")
    return BaseModel(
        kind, config["num_hidden_layers"], _modules(kind, config), config["vocab_size"], config["hidden_size"]
    )


_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


def _modules(kind: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    query, key = heads * size, (config.get("num_key_value_heads") or heads) * size
    if kind in PACKED:
        attention = {"qkv_proj": (hidden, query + 2 * key)}
        feed = {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}
    else:
        attention = {"q_proj": (hidden, query), "k_proj": (hidden, key), "v_proj": (hidden, key)}
        feed = _feed(kind, hidden, inner)
    attention["o_proj"] = (query, hidden)
    return {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in feed.items()}


def _feed(kind: str, hidden: int, inner: int) -> dict[str, Shape]:
    if kind == "starcoder2":
        return {"c_fc": (hidden, inner), "c_proj": (inner, hidden)}
    gate = {} if kind in UNGATED else {"gate_proj": (hidden, inner)}
    return gate | {"up_proj": (hidden, inner), "down_proj": (inner, hidden)}
