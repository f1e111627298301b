"""Random tiny models and adapters that real vLLM serves: two Llama layers, hidden size 128, float32.

Written straight as safetensors with numpy, so that no torch is imported and building takes well under a second. The
same seed gives the same bytes. Kept under ``${XDG_CACHE_HOME:-~/.cache}/sheaf/tests``; the recipe's version is in the
folder's name, and a folder appears under its final name only when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

RECIPE = "v1"
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB, CONTEXT = 128, 2, 4, 2, 32, 256, 512, 2048
PROJECTIONS = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "A sheaf binds many stalks together; one band holds them all, and none is lost.",
    "Please write a short poem about the sea, the wind and the old harbour town.",
    "system user assistant question answer model adapter prefix block token stream",
    "You are a helpful assistant. Answer in one sentence and say what you do not know.",
)


def cache_dir() -> Path:
    """Where built models are kept between test runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sheaf" / "tests"


def cached(name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name` of the cache, built by `build` when it is not there yet (safe among parallel runs)."""
    target = cache_dir() / f"{name}-{RECIPE}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        build(scratch)
        scratch.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def tiny_llama() -> Path:
    """The cached tiny Llama."""
    return cached("tiny-llama", build_tiny_llama)


def tiny_adapter(seed: int, rank: int = 8) -> Path:
    """A cached random LoRA adapter of the tiny Llama."""
    base = tiny_llama()
    return cached(f"tiny-adapter-r{rank}-s{seed}", lambda folder: build_tiny_adapter(folder, base, rank, seed))


def build_tiny_llama(directory: Path, seed: int = 0) -> Path:
    """Write a random Llama with its byte-level BPE tokenizer and a ChatML template into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory)
    _write_json(directory / "config.json", _llama_config())
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    save_file(_llama_weights(seed), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def build_tiny_adapter(directory: Path, base: Path, rank: int = 8, seed: int = 1) -> Path:
    """Write a random PEFT LoRA adapter for `base`, strong enough to change what greedy decoding says."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(name.rsplit(".", 1)[1] for name in PROJECTIONS),
        "inference_mode": True,
        "modules_to_save": None,
    }
    _write_json(directory / "adapter_config.json", config)
    save_file(_adapter_weights(rank, seed), directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def _llama_config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _llama_weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {
        "model.embed_tokens.weight": _normal(rng, (VOCAB, HIDDEN), 1.0),
        "lm_head.weight": _normal(rng, (VOCAB, HIDDEN), 0.3),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, shape in PROJECTIONS.items():
            weights[f"{prefix}.{name}.weight"] = _normal(rng, shape, 0.09)
        weights[f"{prefix}.input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
        weights[f"{prefix}.post_attention_layernorm.weight"] = np.ones(HIDDEN, np.float32)
    return weights


def _adapter_weights(rank: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1000 + seed)
    weights = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{prefix}.lora_A.weight"] = _normal(rng, (rank, columns), 0.09)
            weights[f"{prefix}.lora_B.weight"] = _normal(rng, (rows, rank), 0.2)
    return weights


def _normal(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def _write_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
