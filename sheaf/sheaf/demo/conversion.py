"""The base model as vLLM reads it: a GGUF file turned into safetensors with its tokenizer and chat template."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, gguf_file: str, target: Path) -> None:
    """Write the model of `source/gguf_file`, dequantised to bfloat16, into `target`."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf_file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_file).save_pretrained(target)
