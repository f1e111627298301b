"""Which files of a source are taken: decided from the listing alone, before anything is read.

An adapter is exactly two files, the two that the engine reads. Everything else beside them (a README, an optimizer
state, a checkpoint folder) is left where it is. Pickled weights are never opened: where they are the only weights,
the source is refused. A model is its configuration, tokenizer and safetensors files; code in a repository is never
taken.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from sheaf_engine.agent.errors import AdapterError, Reason

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
MODEL_INDEX = "model.safetensors.index.json"
MODEL_WEIGHTS = "model.safetensors"
MODEL_EXTRAS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "preprocessor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
MOST_FILES = 10_000
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npz", ".npy", ".h5", ".msgpack")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a source: POSIX path relative to the source's folder, and bytes."""

    path: str
    size: int


class Layout(Protocol):
    """What is taken from a source."""

    def choose(self, listing: Sequence[RemoteFile]) -> list[RemoteFile]:
        """The files to take out of all that there are."""
        ...


class AdapterLayout:
    """The two files of a LoRA adapter in PEFT's layout."""

    def choose(self, listing: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Both files, or why they cannot be had."""
        found = {file.path: file for file in listing}
        if CONFIG in found and WEIGHTS in found:
            return [found[CONFIG], found[WEIGHTS]]
        return _missing(found, CONFIG if CONFIG not in found else WEIGHTS)


class ModelLayout:
    """The files of a base model in the transformers layout."""

    def choose(self, listing: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Configuration, tokenizer and safetensors at the top of the source."""
        found = {file.path: file for file in listing}
        shards = [file for file in listing if _SHARD.fullmatch(file.path) and not file.path.startswith("consolidated")]
        if MODEL_CONFIG not in found or not shards:
            _missing(found, MODEL_CONFIG if MODEL_CONFIG not in found else MODEL_WEIGHTS)
        small = [found[name] for name in (MODEL_CONFIG, MODEL_INDEX, *MODEL_EXTRAS) if name in found]
        return small + shards


def choose(layout: Layout, listing: Sequence[RemoteFile]) -> list[RemoteFile]:
    """What a layout takes out of the MOST_FILES that lie highest; where it misses one of more, that is told too."""
    near = sorted(listing, key=lambda file: file.path.count("/"))[:MOST_FILES]
    try:
        return layout.choose(near)
    except AdapterError as error:
        if len(listing) < MOST_FILES or error.reason is not Reason.FILES_MISSING:
            raise
        told = f"{error.message}, and more: of so many only {MOST_FILES} are looked at; name a folder that has fewer"
        raise AdapterError(error.reason, told) from error


def _missing(found: dict[str, RemoteFile], name: str) -> NoReturn:
    pickled = sorted(path for path in found if path.lower().endswith(PICKLES) and "/" not in path)
    if name.endswith(".safetensors") and pickled:
        raise AdapterError(
            Reason.PICKLED_WEIGHTS,
            f"the weights are in {pickled[0]}, a format that can run code when opened; save them as {name} "
            "(save_pretrained(..., safe_serialization=True))",
        )
    there = ", ".join(repr(path) for path in sorted(found)[:5]) or "nothing"
    raise AdapterError(Reason.FILES_MISSING, f"the source has no {name}; it has {there}")


def check_total(files: Sequence[RemoteFile], limit: int) -> None:
    """Refuse files that declare more bytes in all than the limit."""
    total = sum(file.size for file in files)
    if total > limit:
        raise AdapterError(
            Reason.SIZE_LIMIT_EXCEEDED, f"the files have {total} bytes, more than the limit of {limit}; raise sizeLimit"
        )


ADAPTER = AdapterLayout()
MODEL = ModelLayout()
